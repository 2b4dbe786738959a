# make bench            everything beside its peers, into docs/benchmarks and the README's table: every round, on a quiet machine
# make bench QUICK=1    the same in under a minute but for the builds, into target/bench/partial: for developing; PUBLISH=1: into docs/benchmarks all the same
# make bench-smoke      that the harness works, and finds out a lock that is none: part of make test
# BENCH_ONLY=c,handover picks languages (c, rust, python, node), tasks, or both (c:pair), also into target/bench/partial

bench := $(target)/bench
bench_venv := $(bench)/venv
BENCH_ONLY ?=
bench_c_flags := -std=gnu11 -O2 -g -Wall -Wextra -Werror -pthread
bench_c_tasks := $(filter-out %/kinds.c %/async.c,$(wildcard tests/bench/c/*.c))

.PHONY: bench bench-smoke bench-build bench-c bench-rust bench-python bench-node

# What is measured is built as it is shipped.
bench-c: tools
	@cargo build --release --quiet -p ipcmutex-ffi -p ipcmutex-cli -p ipcmutex-node
	@PREFIX="$(bench)/installed" DESTDIR= BUILD="$(target)/release" ffi/install.sh
	@gcc $(bench_c_flags) -DWITH_ASYNC -I$(bench)/installed/include tests/bench/c/*.c -o $(bench)/bench-c \
	  -L$(bench)/installed/lib -lipcmutex -Wl,-rpath,$(bench)/installed/lib

# Ours and its dependencies as they are shipped; the peers as they are today.
tests/bench/rust/Cargo.lock: Cargo.lock
	@cp $< $@

bench-rust: tools tests/bench/rust/Cargo.lock
	@mkdir -p $(bench)
	@CARGO_TARGET_DIR=$(bench)/rust cargo build --release --quiet --manifest-path tests/bench/rust/Cargo.toml
	@gcc $(bench_c_flags) $(bench_c_tasks) tests/bench/rust/kinds.c -o $(bench)/bench-rust $(bench)/rust/release/libbench_rust.a \
	  -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc

$(bench_venv)/ready: tests/bench/python/requirements.txt
	@mkdir -p $(bench)
	@python3 -m venv $(bench_venv) || { echo "make: please install python3-venv" >&2; exit 1; }
	@$(bench_venv)/bin/pip install --quiet --disable-pip-version-check -r tests/bench/python/requirements.txt
	@touch $@

bench-python: $(bench_venv)/ready $(venv)/ready
	@rm -rf $(bench)/wheels
	@cd bindings/python && $(venv)/bin/maturin build --release --quiet --interpreter $(bench_venv)/bin/python --out $(bench)/wheels \
	  >$(bench)/wheel.log 2>&1 || { cat $(bench)/wheel.log >&2; exit 1; }
	@$(bench_venv)/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps $(bench)/wheels/*.whl

$(bench)/node/node_modules: tests/bench/node/package.json
	@mkdir -p $(bench)/node && cp tests/bench/node/package.json $(bench)/node/
	@cd $(bench)/node && npm install --silent --no-fund --no-audit --no-package-lock
	@touch $@

bench-node: bench-c $(bench)/node/node_modules
	@cp tests/bench/node/*.mjs $(bench)/node/
	@rm -rf $(bench)/node/node_modules/ipcmutex && cp -r bindings/node $(bench)/node/node_modules/ipcmutex
	@cp $(target)/release/libipcmutex_node.so $(bench)/node/node_modules/ipcmutex/$$(node -p 'require("./bindings/node/install.js").file')

bench-build:
	@echo "make: building what is measured, and what it is measured beside"
	@$(MAKE) bench-c bench-rust bench-python bench-node

bench: bench-build redis
	@PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/bench $(bench_venv)/bin/python -m harness --target $(bench) $(if $(QUICK),--quick) \
	  --only "$(BENCH_ONLY)" $(if $(or $(if $(PUBLISH),,$(QUICK)),$(BENCH_ONLY)),--results $(bench)/partial,--results docs/benchmarks --readme README.md)

# With what the tests have built, so that nothing is built twice.
bench-smoke: build redis
	@mkdir -p $(bench)
	@gcc $(bench_c_flags) -DWITH_ASYNC -I$(installed)/include tests/bench/c/*.c -o $(bench)/smoke-c \
	  -L$(installed)/lib -lipcmutex -Wl,-rpath,$(installed)/lib
	@cp tests/bench/node/*.mjs $(node)/
	@PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/bench $(venv)/bin/python -m harness.smoke --c $(bench)/smoke-c --node $(node)
