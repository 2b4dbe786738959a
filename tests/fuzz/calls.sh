#!/usr/bin/env bash
# Made-up sequences of C calls for SECONDS, C under the sanitizers: calls.sh SECONDS FOLDER
#
# The library is the one that `make c` has built.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=$1
work=$2
mkdir -p "$work"
target=${CARGO_TARGET_DIR:-$PWD/target}
ln -sf "$target/debug/libipcmutex.so" "$work/libipcmutex.so.0"
gcc -std=gnu11 -g -O1 -Wall -Wextra -Werror -pthread -fsanitize=address,undefined -fno-sanitize-recover=all \
    -Iinclude -Iffi/tests/c ffi/tests/c/calls.c "$work/libipcmutex.so.0" "-Wl,-rpath,$work" -o "$work/calls"
mkdir -p -m 700 "$work/locks"
IPCMUTEX_DIR=$work/locks timeout "$((seconds + 60))" "$work/calls" -s "$seconds" "$work/last" || {
    echo "the calls are in $work/last; put them into tests/fuzz/corpus/calls and mend" >&2
    exit 1
}
