#!/usr/bin/env bash
# One transfer, under the lock: see README.md.
set -e
ledger=$1 asked=$2 entered=${EPOCHREALTIME/[.,]/} repaired=0
accounts=(alice bob carol dave transfers) books=()

write_head() {
  printf '%-11s%20d\n' alice "${books[0]}" bob "${books[1]}" carol "${books[2]}" dave "${books[3]}" transfers "${books[4]}" |
    dd of="$ledger" bs=160 count=1 iflag=fullblock conv=notrunc status=none
}

write_entry() { # at side account amount
  printf '%20s %-6s %7d %-6s %-7s %12d\n' "$IPCMUTEX_TOKEN" shell $$ "$2" "${accounts[$3]}" "$4" |
    dd of="$ledger" bs=32 seek=$((5 + 2 * $1)) iflag=fullblock conv=notrunc status=none
}

while read -r _ value && [ ${#books[@]} -lt 5 ]; do books+=("$value"); done < <(head -c 160 "$ledger")
n=${books[4]}
from=$((n % 4)) to=$(((n + 1 + n / 4 % 3) % 4)) amount=$((1 + n % 97))
if [ "$IPCMUTEX_ABANDONED" = 1 ]; then
  repaired=$((4000000 - books[0] - books[1] - books[2] - books[3]))
  books[from]=$((books[from] + repaired))
fi
write_entry $((2 * n)) debit $from $amount
books[from]=$((books[from] - amount))
write_head
sleep 0.0005
write_entry $((2 * n + 1)) credit $to $amount
books[to]=$((books[to] + amount)) books[4]=$((n + 1))
write_head
echo "shell ${asked}000 ${entered}000 ${EPOCHREALTIME/[.,]/}000 $IPCMUTEX_TOKEN ${IPCMUTEX_ABANDONED:-0} $repaired"
