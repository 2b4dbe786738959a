#!/usr/bin/env bash
# The units of docs/SERVICES.md under a systemd that boots in a container, whose root is this machine's under an overlay.
#
#   systemd.sh COMMAND    the built `ipcmutex`
[ -n "${IPCMUTEX_OWN_MOUNTS-}" ] || IPCMUTEX_OWN_MOUNTS=1 exec unshare --mount "$0" "$@"
. "$(dirname "$0")/common.sh"

skip() {
    echo "SKIPPED systemd.sh: $1" >&2
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
[ "$(id -u)" = 0 ] || skip "only root can boot a container"
command -v systemd-nspawn >/dev/null || skip "systemd-nspawn is missing: apt-get install systemd-container"

units=$work/units
mkdir "$units" out top
mount -t tmpfs tmpfs top
mkdir top/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/top/upper,workdir=$work/top/work" top/root
trap 'umount "$work/top/root" "$work/top"; rm -rf "$work"' EXIT
# A block that begins with the name of a unit is that unit.
awk -v into="$units/" '/^```/ { file = ""; next } /^# .etc.systemd.system./ { n = split($2, part, "/"); file = into part[n] } file { print > file }' "$root/docs/SERVICES.md"
[ -s "$units/report.service" ] && [ -s "$units/nightly.service" ]
cp "$root/tests/packages/systemd/"*.service "$units"
binds=()
for unit in "$units"/*; do
    binds+=("--bind-ro=$unit:/etc/systemd/system/${unit##*/}")
done

boot() {
    timeout -s KILL 120 systemd-nspawn --quiet --directory=top/root --machine="ipcmutex-$$" --uuid="$(cat /proc/sys/kernel/random/uuid)" \
        --private-network --register=no --keep-unit --link-journal=no --console=pipe \
        --bind-ro="$1:/usr/local/bin/ipcmutex" --bind-ro="$root/tests/packages/systemd/inside.sh:/inside.sh" --bind="$work/out:/out" \
        "${binds[@]}" --boot systemd.unit=check.service || true
    cat out/said && tail -n1 out/said | grep -q '^ok   the last one'
}
check "the units do under systemd what is said of them" boot "$1"
echo "$passed passed, 0 failed"
