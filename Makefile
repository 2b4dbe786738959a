# make demo                       C, Python, Node and shell processes take one lock, and one is killed while it holds
# make test                       everything that must hold
# make packages                   what is installed: wheel, npm tarballs, C and the crate, each into an empty environment, and used there
# make free-threaded PYTHON=      the tests of the Python binding under a free-threaded CPython
# make systemd                    the units of docs/SERVICES.md, under a systemd that boots in a container
# make wheel                      the wheel as it is published, for every Linux from glibc 2.17 on, into target/dist (DIST=), looked at and used
# make sanitize                   the C cells of the matrix, their agent under AddressSanitizer, UBSan and LeakSanitizer
# make fuzz                       bytes that nobody meant, led by coverage, for FUZZ_SECONDS=60 each target (FUZZ="url page resp calls")
# make soak                       the languages hammer one lock for a minute (SOAK_SECONDS=60)
# make chaos                      they are killed, stopped and cut off meanwhile; tests/chaos/README.md
# make servers                    the tests of Redis against other releases of it, and Valkey (SERVERS="redis-6.2 redis-8 valkey-8 valkey-9")
# make figures                    what the tests of faults measure, into docs/FAULTS.md
# make sweep                      every system call of every path fails with each of its errors; 10,000 forks, a million tokens, 10,000 releases in Redis
# make bench                      speed beside other locks, into docs/benchmarks and the README (QUICK=1: a few rounds, under a minute but for the builds)
# make install PREFIX= DESTDIR=   header, libraries, command
# make loader                     writes bindings/node/loader.js anew, with the version of @napi-rs/cli that is named below
# make lint                       format, clippy, rustdoc, each combination of features
# make clean
#
# Rust, gcc, python3 and node are expected to be there. What is generated goes under target/ alone.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
PREFIX ?= /usr/local
SOAK_SECONDS ?= 60
FUZZ_SECONDS ?= 60
SERVERS ?= redis-6.2 redis-8 valkey-8 valkey-9

target := $(CARGO_TARGET_DIR)
# One profile and one selection of packages for everything, so that nothing is compiled twice.
built := $(target)/debug
packages := -p ipcmutex -p ipcmutex-ffi -p ipcmutex-cli -p ipcmutex-node -p ipcmutex-tests
installed := $(target)/installed
venv := $(target)/venv
node := $(target)/node

# Ends what hangs, and says that it did; which tests had been running for over a minute libtest has said by then. All that was started
# ends with it, but at a terminal, from which it must hear of Ctrl-C.
watchdog := timeout $(shell [ ! -t 0 ] || echo --foreground) --verbose --kill-after=1m 45m

.PHONY: neighbours demo test packages fuzz soak install lint clean build tools redis rust c python node test-rust test-python test-node

demo: build redis
	@$(built)/demo

test: tools redis lint build test-rust test-python test-node sanitize bench-smoke
	@echo "make test: all passed"

# Nothing may be skipped here for want of a server. What runs in the background ignores Ctrl-C and its like, and so would
# the programs whose handling of signals is tested: they start with the signals as a terminal gives them.
test-rust: build redis neighbours debian-g++ debian-strace debian-abigail-tools debian-valgrind debian-btrfs-progs debian-man-db
	IPCMUTEX_REQUIRE_REDIS=1 IPCMUTEX_REQUIRE_TOOLS=1 RUST_BACKTRACE=0 $(watchdog) env --default-signal cargo test $(packages) --no-fail-fast
	$(watchdog) tests/some.sh cargo test -p ipcmutex -p ipcmutex-ffi --features ipcmutex/schedules,ipcmutex-ffi/schedules --lib schedules

test-python: python redis
	cd bindings/python && IPCMUTEX_REQUIRE_REDIS=1 $(watchdog) env --default-signal $(venv)/bin/python -m pytest -p no:cacheprovider

test-node: node redis
	cd $(node)/ipcmutex && IPCMUTEX_REQUIRE_REDIS=1 $(watchdog) env --default-signal node --test --expose-gc test/*.test.js

packages: tools debian-g++ debian-cmake debian-pkg-config $(venv)/ready $(target)/node-tools/ready
	tests/packages/c.sh
	tests/packages/python.sh $(venv)/bin/python
	tests/packages/node.sh $(target)/node-tools
	tests/packages/rust.sh
	@echo "make packages: all passed"

# abi3 is not for a free-threaded interpreter: it gets a build of its own. PyO3 knows them from 3.14 on.
.PHONY: free-threaded
free-threaded: tools redis $(venv)/ready
	@python=$$(command -v "$(or $(PYTHON),python3.14t)") || { echo "SKIPPED free-threaded: no python3.14t; name one by PYTHON="; exit 0; }; \
	$$python -c 'import sys; sys.exit(sys._is_gil_enabled())' || { echo "make: $$python has its GIL on" >&2; exit 1; }; \
	$$python -m venv --clear $(target)/free-threaded && rm -rf $(target)/free-threaded/wheels; \
	(cd bindings/python && $(venv)/bin/maturin build --quiet --interpreter $(target)/free-threaded/bin/python --out $(target)/free-threaded/wheels); \
	$(target)/free-threaded/bin/pip install --quiet --disable-pip-version-check 'pytest>=8' $(target)/free-threaded/wheels/*.whl; \
	cd bindings/python && IPCMUTEX_REQUIRE_REDIS=1 env --default-signal $(target)/free-threaded/bin/python -m pytest -p no:cacheprovider --ignore tests/test_types.py

.PHONY: systemd
systemd: rust debian-systemd-container
	tests/packages/systemd.sh $(built)/ipcmutex

.PHONY: wheel
wheel: tools $(venv)/zig
	tests/packages/wheel.sh $(venv)/bin/python "$(or $(DIST),$(target)/dist)"

fuzz: tools debian-g++
	tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ)

soak: build redis
	IPCMUTEX_HAMMER_SECONDS=$(SOAK_SECONDS) cargo test $(packages) --test exclusion -- --nocapture --test-threads=1

# What it finds goes into files, for an agent that dies is part of many a scenario.
.PHONY: sanitize
sanitize: build redis
	@rm -rf $(target)/sanitize && mkdir -p $(target)/sanitize
	@gcc -std=gnu11 -g -O1 -pthread -fsanitize=address,undefined -fno-omit-frame-pointer -I$(installed)/include \
	  tests/agents/agent.c tests/agents/faults.c -o $(target)/sanitize/agent-c -L$(installed)/lib -lipcmutex -Wl,-rpath,$(installed)/lib
	IPCMUTEX_SANITIZED_AGENT=$(target)/sanitize/agent-c IPCMUTEX_REQUIRE_REDIS=1 \
	  ASAN_OPTIONS=detect_leaks=1:log_path=$(target)/sanitize/found UBSAN_OPTIONS=print_stacktrace=1:log_path=$(target)/sanitize/found \
	  $(watchdog) env --default-signal tests/some.sh cargo test $(packages) --test matrix -- 'c]'
	@! cat $(target)/sanitize/found.* 2>/dev/null

.PHONY: chaos
chaos: build redis
	@$(built)/chaos

# What a release does not have is skipped, and said.
.PHONY: servers
servers: build redis neighbours
	@for server in $(SERVERS); do tests/servers/get.sh $$server $(target)/servers/$$server; done
	@failed=; for server in $(SERVERS); do \
	  echo "== $$server"; \
	  PATH=$(target)/servers/$$server/bin:$$PATH IPCMUTEX_REQUIRE_REDIS=1 RUST_BACKTRACE=0 cargo test -q -p ipcmutex-tests --no-fail-fast \
	    --test redis --test redis_faults --test topologies --test matrix --test walk --test chaos --test controls || failed="$$failed $$server"; \
	done; [ -z "$$failed" ] || { echo "make servers: failed:$$failed" >&2; exit 1; }

# What the faults' tests measure, into docs/FAULTS.md: on a quiet machine, one test at a time.
.PHONY: figures
figures: build redis neighbours debian-strace
	@rm -f $(target)/figures
	IPCMUTEX_FIGURES=$(target)/figures IPCMUTEX_REQUIRE_REDIS=1 cargo test -q -p ipcmutex-tests --test faults --test mpm --test redis --test redis_faults --test topologies -- --test-threads=1
	IPCMUTEX_FIGURES=$(target)/figures IPCMUTEX_BLESS=1 cargo test -q -p ipcmutex-tests --test faults table

.PHONY: sweep
sweep: build redis debian-strace
	IPCMUTEX_SWEEP=1 IPCMUTEX_FORKS=10000 cargo test -p ipcmutex-tests --test faults -- --nocapture every_call k4_
	IPCMUTEX_RELEASES=10000 IPCMUTEX_FORKS=10000 IPCMUTEX_TOKENS=1000000 IPCMUTEX_REQUIRE_REDIS=1 \
	  cargo test -p ipcmutex-tests --test redis --test redis_faults -- --nocapture r9_ p11_

install:
	cargo build --release -p ipcmutex-ffi -p ipcmutex-cli
	PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" ffi/install.sh

lint: tools
	cargo fmt --all --check
	cargo fmt --manifest-path tests/bench/rust/Cargo.toml --check
	PYO3_PYTHON=python3 cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps -p ipcmutex
	cargo check --quiet -p ipcmutex-cli --no-default-features
	cargo clippy -q -p ipcmutex -p ipcmutex-ffi --all-targets --features ipcmutex/schedules,ipcmutex-ffi/schedules -- -D warnings
	@for features in "" redis tls; do cargo clippy -q -p ipcmutex -p ipcmutex-ffi --no-default-features --features "$$features" -- -D warnings; done

clean:
	rm -rf "$(target)"

build: tools rust c python node

# Says in one line what is missing and cannot be had by name here.
tools:
	@missing=; for tool in cargo gcc python3 node npm; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || { echo "make: please install:$$missing" >&2; exit 1; }

redis:
	@command -v valkey-server >/dev/null || $(MAKE) debian-redis-server

program-of-abigail-tools := abidiff
program-of-btrfs-progs := mkfs.btrfs
program-of-man-db := man
program-of-systemd-container := systemd-nspawn

# debian-PACKAGE: the program of PACKAGE is there, or is installed.
debian-%:
	@command -v $(or $(program-of-$*),$*) >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "make: installing $*"; \
	    { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $*; } >/dev/null; \
	  else echo "make: $* is missing and only root can install it: apt-get install $*" >&2; fi; }

rust: tools
	cargo build $(packages)

c: rust
	@PREFIX="$(installed)" DESTDIR= BUILD="$(built)" ffi/install.sh
	@flags="-std=gnu11 -g -O1 -Wall -Wextra -Werror -pthread -I$(installed)/include"; \
	links="-L$(installed)/lib -lipcmutex -Wl,-rpath,$(installed)/lib"; \
	gcc $$flags tests/agents/agent.c tests/agents/faults.c -o $(built)/agent-c $$links; \
	[ "$$(uname -m)" != x86_64 ] || gcc $$flags -shared -fPIC tests/agents/clock.c -o $(built)/libclock.so; \
	gcc $$flags tests/chaos/hammer.c -o $(built)/hammer-c $$links; \
	gcc $$flags tests/demo/worker.c -o $(built)/worker-c $$links

$(venv)/ready:
	@python3 -m venv $(venv) || { echo "make: please install python3-venv" >&2; exit 1; }
	$(venv)/bin/pip install --quiet --disable-pip-version-check 'maturin>=1.16,<2'
	@touch $@

$(venv)/zig: $(venv)/ready
	$(venv)/bin/pip install --quiet --disable-pip-version-check 'maturin[zig]>=1.16,<2' cargo-zigbuild auditwheel
	@touch $@

$(target)/node-tools/ready:
	@mkdir -p $(@D)
	npm install --prefix $(@D) --silent --no-audit --no-fund typescript@5 @types/node@20 @napi-rs/cli@3.10.12
	@touch $@

# What finds the addon of the platform, as @napi-rs/cli writes it.
.PHONY: loader
loader: $(target)/node-tools/ready
	node bindings/node/generate.js $(target)/node-tools bindings/node

# The libraries with which a key in Redis is shared.
neighbours: $(venv)/neighbours $(target)/neighbours/ready

$(venv)/neighbours: $(venv)/ready
	$(venv)/bin/pip install --quiet --disable-pip-version-check 'redis>=5'
	@touch $@

$(target)/neighbours/ready:
	@mkdir -p $(@D)
	npm install --prefix $(@D) --silent --no-audit --no-fund --no-save redlock@4 ioredis@5
	@touch $@

python: rust $(venv)/ready
	@rm -rf $(target)/wheels
	cd bindings/python && $(venv)/bin/maturin build --quiet --interpreter $(venv)/bin/python --out $(target)/wheels
	$(venv)/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps $(target)/wheels/*.whl
	$(venv)/bin/pip install --quiet --disable-pip-version-check "$$(ls $(target)/wheels/*.whl)[test]"

# The package as npm would lay it out, with the addon that cargo built; and beside it the programs that import it.
node: rust
	@rm -rf $(node) && mkdir -p $(node)/node_modules
	@cp -r bindings/node $(node)/ipcmutex
	@cp $(built)/libipcmutex_node.so $(node)/ipcmutex/$$(node -p 'require("./bindings/node/install.js").file')
	@ln -s ../ipcmutex $(node)/node_modules/ipcmutex
	@cp tests/agents/agent.mjs tests/demo/worker.mjs tests/chaos/hammer.mjs $(node)/

include tests/bench/rules.mk
