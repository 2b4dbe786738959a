# make bench   everything beside its peers, into docs/benchmarks and the README (BENCH_ONLY=c,pair picks languages and tasks)

bench := $(target)/bench
BENCH_ONLY ?=

.PHONY: bench bench-c

# Under its own roof: what is measured is built as it is shipped.
bench-c: tools
	@cargo build --release --quiet -p ipcmutex-ffi -p ipcmutex-cli
	@PREFIX="$(bench)/installed" DESTDIR= BUILD="$(target)/release" ffi/install.sh
	@gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -pthread -I$(bench)/installed/include tests/bench/c/*.c -o $(bench)/bench-c \
	  -L$(bench)/installed/lib -lipcmutex -Wl,-rpath,$(bench)/installed/lib

bench: bench-c redis
	@PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/bench python3 -m harness --target $(bench) $(if $(QUICK),--quick) --only "$(BENCH_ONLY)" \
	  --results $(if $(or $(QUICK),$(BENCH_ONLY)),$(bench)/partial,docs/benchmarks)
