#!/usr/bin/env bash
# Runs as a service of the container; see ../systemd.sh.
set -euo pipefail
lock=/var/lib/report/lock
mkdir -p /srv/app
printf '#!/bin/sh\necho "$IPCMUTEX_ABANDONED" >>/srv/app/abandoned\nexec sleep infinity\n' >/srv/app/report
printf '#!/bin/sh\necho ran >>/srv/app/runs\n' >/srv/app/nightly
chmod +x /srv/app/*

ok() { echo "ok   $1"; }
fail() {
    echo "FAIL $1"
    systemctl --no-pager status report nightly || true
    ipcmutex status "$lock" || true
    exit 1
}
# until_is WHAT EXPECTED COMMAND…: the watchdog of the container ends it.
until_is() {
    local what=$1 expected=$2
    shift 2
    for ((tries = 0; tries < 600; tries++)); do
        [ "$("$@" 2>/dev/null)" != "$expected" ] || { ok "$what"; return; }
        sleep 0.05
    done
    fail "$what: $("$@" 2>&1), not $expected"
}
is() { [ "$3" = "$2" ] && ok "$1" || fail "$1: $3, not $2"; }
of() { systemctl show --value -p "$2" "$1"; }
state() { ipcmutex status --json "$lock" | sed 's/.*"state":"\([a-z]*\)".*/\1/'; }
waiters() { ipcmutex status --json "$lock" | sed 's/.*"waiters":\([0-9]*\).*/\1/'; }

is "a service has no folder of its own" "" "${XDG_RUNTIME_DIR-}"
systemctl start report
until_is "the service holds the lock" held state
systemctl start nightly
is "what comes meanwhile is no failure" success "$(of nightly Result)"
is "and does nothing" "" "$(cat /srv/app/runs 2>/dev/null || true)"

systemctl stop report
is "a stop ends it" inactive "$(of report ActiveState)"
is "and is no failure" success "$(of report Result)"
is "and frees the lock" free "$(state)"
systemctl start nightly
is "then the other one runs" ran "$(cat /srv/app/runs)"

systemctl start report
until_is "it holds again" held state
command=$(pgrep -P "$(of report MainPID)")
systemctl kill -s KILL --kill-whom=main report
until_is "a kill starts it again" 1 of report NRestarts
until_is "and it hears of it" 1 tail -n1 /srv/app/abandoned
is "the killed one's command is gone" "" "$(ps -o pid= -p "$command" || true)"

# A second one waits, and is ready once it has the lock.
systemd-run --quiet --no-block --unit=second -p Type=notify -p NotifyAccess=all -p SuccessExitStatus=143 \
    ipcmutex run "$lock" -- sh -c 'systemd-notify --ready; exec sleep infinity'
until_is "another one waits" 1 waiters
is "and has not started" activating "$(of second ActiveState)"
systemctl stop report
until_is "until it is its turn" active of second ActiveState
systemctl start report
until_is "now the first one waits" 1 waiters
systemctl stop report
is "a stop while it waits is no failure" success "$(of report Result)"
is "and leaves nobody in the line" 0 "$(waiters)"
systemctl stop second

systemctl start report
until_is "it holds once more" held state
ipcmutex break "$lock"
until_is "a loss ends it" failed of report ActiveState
is "with 75" 75 "$(of report ExecMainStatus)"
is "and does not start it again" 0 "$(of report NRestarts)"

named() { systemd-run --quiet --wait --pipe --collect "$@" ipcmutex run -n named -- echo mine; }
ipcmutex run named -- sleep infinity &
until_is "a name is held" held sh -c "ipcmutex status --json named | sed 's/.*\"state\":\"\([a-z]*\)\".*/\1/'"
is "it is one lock for a plain service" "" "$(named 2>/dev/null || true)"
is "and another one where /tmp is private" mine "$(named -p PrivateTmp=yes)"
kill %1

hard=(-p DynamicUser=yes -p StateDirectory=hard -p SystemCallFilter=@system-service -p SystemCallFilter=~@privileged\ @resources
    -p SystemCallErrorNumber=EPERM -p MemoryDenyWriteExecute=yes -p RestrictAddressFamilies=AF_UNIX -p PrivateUsers=yes -p PrivateDevices=yes
    -p ProtectSystem=strict -p ProtectProc=invisible -p ProcSubset=pid -p RestrictNamespaces=yes -p LockPersonality=yes
    -p NoNewPrivileges=yes -p PrivateNetwork=yes)
hardened() { systemd-run --quiet --wait --pipe --collect "${hard[@]}" ipcmutex run -n -E 9 /var/lib/hard/lock -- "$@"; }
is "it runs where next to nothing is allowed" mine "$(hardened echo mine)"
is "and excludes there" 9 "$(hardened ipcmutex run -n -E 9 /var/lib/hard/lock -- true >/dev/null 2>&1 || echo $?)"
ok "the last one"
