#!/usr/bin/env bash
# The wheel and the source distribution, installed with pip into fresh environments.
#
#   python.sh PYTHON    an interpreter with pip and maturin, which builds them
. "$(dirname "$0")/common.sh"

builder=$1
source=$root/bindings/python
pip="-m pip --quiet --disable-pip-version-check"
example python >example.py
example sh >example.sh

check "pip wheel" "$builder" $pip wheel --no-deps --wheel-dir wheels "$source"
wheel=$(echo wheels/ipcmutex-*-cp310-abi3-*.whl)

# Runs the README in the environment that is there.
use() { # environment
    check "$1: the example" "$1/bin/python" -I -W error example.py
    check "$1: the command" env PATH="$work/$1/bin:/usr/bin:/bin" sh -eu example.sh
    check "$1: the command is the installed one" env PATH="$work/$1/bin:/usr/bin:/bin" \
        sh -c "[ \$(command -v ipcmutex) = $work/$1/bin/ipcmutex ]"
}

python3 -m venv wheel
check "the wheel installs from nothing else" wheel/bin/python $pip install --no-index "$wheel"
use wheel
check "it is typed" test -f "$(wheel/bin/python -c 'import ipcmutex, os; print(os.path.dirname(ipcmutex.__file__))')/py.typed"
check "pip uninstall" wheel/bin/python $pip uninstall --yes ipcmutex
check "nothing of it is left" eval '[ -z "$(find wheel -name "*ipcmutex*")" ]'

# One wheel for every Python from 3.10 on.
check "the wheel unpacks" "$builder" $pip install --no-index --no-deps --target unpacked "$wheel"
for version in 3.10 3.11 3.12 3.13 3.14; do
    # Where pyenv has it, its launcher asks for the exact version.
    PYENV_VERSION=$(pyenv latest "$version" 2>/dev/null) || true
    export PYENV_VERSION
    if "python$version" -c '' 2>/dev/null; then
        check "Python $version: the example" env PYTHONPATH=unpacked "python$version" -W error example.py
    else
        echo "no Python $version here"
    fi
done
unset PYENV_VERSION

# From source, in the profile that needs no second build of all dependencies.
check "the source distribution" env PATH="$(dirname "$builder"):$PATH" "$builder" -c '
import os, sys
out = os.path.abspath("sdist")
os.chdir(sys.argv[1])
sys.path.insert(0, ".")
import backend
backend.build_sdist(out)' "$source"
python3 -m venv source
check "pip install of the source distribution" env IPCMUTEX_PROFILE=dev \
    source/bin/python $pip install --config-settings=build-args="--profile dev" sdist/ipcmutex-*.tar.gz
use source

echo "$passed passed, 0 failed"
