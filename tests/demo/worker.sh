#!/usr/bin/env bash
# The demo's worker in the shell: see README.md. Each transfer is a program of its own under `ipcmutex run`.
url=$1 ledger=$2 until=$((${EPOCHREALTIME/[.,]/} + ${3%.*} * 1000000))
here=$(dirname "$0")
while [ "${EPOCHREALTIME/[.,]/}" -lt "$until" ]; do
  "$IPCMUTEX" run "$url" -- bash "$here/transfer.sh" "$ledger" "${EPOCHREALTIME/[.,]/}" || exit
done
