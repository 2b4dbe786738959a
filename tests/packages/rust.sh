#!/usr/bin/env bash
# The crate as cargo packs it, added to empty projects.
. "$(dirname "$0")/common.sh"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)

# Not verified by cargo, which would build it once more: the projects build it.
check "cargo package" cargo package --quiet --manifest-path "$root/Cargo.toml" -p ipcmutex --no-verify --allow-dirty --target-dir crate
tar -xf "crate/package/ipcmutex-$version.crate"

# A project: its name, and how the crate is added to it.
use() { # name arguments of cargo add
    cargo new --quiet --vcs none "$1"
    (cd "$1" && cargo add --quiet --path "../ipcmutex-$version" "${@:2}")
    example rust >"$1/src/main.rs"
    # The versions that the crate's own tests have.
    cp "$root/Cargo.lock" "$1/Cargo.lock"
    check "$*: the example" cargo run --quiet --offline --manifest-path "$1/Cargo.toml"
}

use all-of-it
use same-host-only --no-default-features
cargo tree --quiet --offline --manifest-path same-host-only/Cargo.toml >needs
check "without Redis it needs none of its crates" eval 'grep -q rustix needs && ! grep -E "redis|tokio|rustls" needs'

echo "$passed passed, 0 failed"
