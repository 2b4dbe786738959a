# Sourced by the scripts of this folder: a place of its own, and the examples of the README.
#
# Each script takes a package as a stranger gets it, installs it into an empty environment, and runs the README there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export IPCMUTEX_DIR=$work/locks
mkdir -m 700 "$IPCMUTEX_DIR"

# example TAG: the README's first block with this tag.
example() {
    awk -v tag="$1" '/^```/ { if (on) exit; on = $0 == "```" tag; next } on' "$root/README.md" | grep . || {
        echo "README.md has no example tagged \`\`\`$1" >&2
        exit 1
    }
}

passed=0

# check WHAT COMMAND…: runs it quietly; if it fails, shows what it said, and ends the script.
check() {
    local what=$1
    shift
    if "$@" >"$work/said" 2>&1; then
        echo "ok   $what"
        passed=$((passed + 1))
    else
        echo "FAIL $what ($?)"
        cat "$work/said"
        echo "$passed passed, 1 failed"
        exit 1
    fi
}
