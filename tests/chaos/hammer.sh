#!/usr/bin/env bash
# A participant of the chaos runs in the shell: each visit is a program under `ipcmutex run`. ../src/chaos/record.rs says what
# it tells, and README.md what all of them do.
RANDOM=$CHAOS_SEED
# Nobody goes on without the driver.
while kill -0 $PPID && [ "$("$HAMMER" stopped)" = 0 ]; do
  export CHAOS_ENTRANT=$((CHAOS_ENTRANT % 32000 + 1))
  case $((RANDOM % 10)) in
    0) limit=-n ;;
    1 | 2) limit="-w 0.0$((RANDOM % 5 + 1))" ;;
    *) limit= ;;
  esac
  "$IPCMUTEX" run $limit "$CHAOS_URL" -- "$HAMMER" visit 2>/dev/null
  code=$?
  # A command that was killed tells nothing more.
  [ $code -ge 128 ] || "$HAMMER" ran $code
done
