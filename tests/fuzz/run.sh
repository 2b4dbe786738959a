#!/usr/bin/env bash
# Fuzzes each target for SECONDS: run.sh SECONDS [TARGET…]
#
# libFuzzer with coverage and AddressSanitizer, as cargo-fuzz would run it, on any toolchain; without its search for leaks, which takes
# what a thread has while it ends for one (valgrind looks for them, in ffi/tests/c.rs). What it finds on the way stays
# under target/fuzz for the next run; what ends it is named, belongs into corpus/TARGET, and `make test` replays it.
set -euo pipefail
cd "$(dirname "$0")"
seconds=$1
shift
[ $# -gt 0 ] || set -- url page resp calls
target=${CARGO_TARGET_DIR:-$(cd ../.. && pwd)/target}
triple=$(rustc -vV | sed -n 's/^host: //p')

flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Zsanitizer=address"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$flag"
done
# --target, so that build scripts and macros stay as they are; the sanitizers are there and only not called stable.
RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags cargo build --quiet --release --target "$triple" --target-dir "$target/fuzz"

code=0
for name in "$@"; do
    work=$target/fuzz/$name
    mkdir -p "$work/corpus" "$work/locks" && chmod 700 "$work/locks"
    # A call is two bytes, and may wait.
    longest=$([ "$name" = calls ] && echo 160 || echo 8192)
    echo "make: fuzzing $name for $seconds s"
    IPCMUTEX_DIR=$work/locks "$target/fuzz/$triple/release/$name" -max_total_time="$seconds" -timeout=20 \
        -rss_limit_mb=2048 -max_len="$longest" -detect_leaks=0 -print_final_stats=1 -artifact_prefix="$work/" \
        "$work/corpus" "corpus/$name" 2>"$work/log" || {
        code=1
        tail -40 "$work/log"
    }
    grep -E '\sDONE\s|stat::number_of_executed_units|stat::new_units_added|stat::peak_rss' "$work/log" || true
done
exit $code
