#!/usr/bin/env bash
# The wheel and the source distribution as they are published: for any Linux from glibc 2.17 on and Python from 3.10 on.
#
#   wheel.sh PYTHON FOLDER    an interpreter with maturin, zig and auditwheel, and where the two are put
. "$(dirname "$0")/common.sh"

builder=$1
dist=$(mkdir -p "$2" && cd "$2" && pwd)
rm -f "$dist"/ipcmutex-*.whl "$dist"/ipcmutex-*.tar.gz
example python >example.py
example sh >example.sh

# zig has the C libraries of old; maturin names the oldest that will do.
build() {
    cd "$root/bindings/python" && export PATH="$(dirname "$builder"):$PATH" IPCMUTEX_GLIBC=2.17
    python -c 'import backend; backend._build_command()' &&
        maturin build --release --zig --compatibility manylinux2014 --interpreter python --out "$dist" &&
        python -c 'import backend, sys; backend.build_sdist(sys.argv[1])' "$dist"
}
check "the wheel, with zig" eval "(build)"
wheel=$(echo "$dist"/ipcmutex-*-cp310-abi3-*.whl)

check "its name says manylinux2014" eval '[[ $wheel == *manylinux2014* ]]'
shows() {
    "$(dirname "$builder")/auditwheel" show "$wheel" | tr '\n' ' ' >shown && cat shown
    grep -q 'constrains the platform tag to "manylinux_2_17' shown || grep -q 'consistent with the following platform tag: *"manylinux_2_17' shown
}
check "auditwheel finds nothing newer" shows
oldest() { # what ELF files in the wheel ask of glibc
    "$builder" -m zipfile -e "$wheel" files
    find files -name '*.so' -o -path '*scripts/ipcmutex' | while read -r file; do objdump -T "$file" | grep -o 'GLIBC_[0-9.]*'; done |
        sort -uV >versions
    tail -1 versions
    [ "$(printf '%s\n' "$(tail -1 versions)" GLIBC_2.17 | sort -V | tail -1)" = GLIBC_2.17 ] && [ -s versions ]
}
check "neither module nor command needs more than glibc 2.17" oldest
unknown() { # a name that no library of then had is asked for without a version, and found nowhere where it is old
    find files -name '*.so' -o -path '*scripts/ipcmutex' | while read -r file; do objdump -T "$file"; done |
        grep -F '*UND*' | grep -vE '^[0-9a-f]+ +w|\(' | awk '{ print $NF }' | grep -vE '^_?Py' >names
    cat names
    [ ! -s names ]
}
check "and no name that it does not have" unknown

python3 -m venv fresh
check "it installs from nothing else" fresh/bin/python -m pip --quiet --disable-pip-version-check install --no-index "$wheel"
check "the example" fresh/bin/python -I -W error example.py
check "the command" env PATH="$work/fresh/bin:/usr/bin:/bin" sh -eu example.sh
check "the command is the installed one" env PATH="$work/fresh/bin:/usr/bin:/bin" \
    sh -c "[ \$(command -v ipcmutex) = $work/fresh/bin/ipcmutex ]"

echo "$passed passed, 0 failed: $(cd "$dist" && echo ipcmutex-*)"
