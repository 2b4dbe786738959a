#!/usr/bin/env bash
# The shell agent: see README.md. A lock that is "open" is a URL that `status` could look at; a hold is an `ipcmutex run`
# whose child waits to be let go, at the latest when the agent ends.
declare -A url wait
# The driver's, which removes it: this may be killed.
dir=$IPCMUTEX_AGENT_DIR
say() { printf '%s\n' "$*"; }
unhex() { [ "$1" = - ] || printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }
one_line() { tr -s '[:space:]' ' ' <"$1"; }

limit() { # milliseconds to the command's option
  case $1 in
    forever) ;;
    0) printf -- -n ;;
    *[!0-9]*) echo "-w $1" ;;
    *) printf -- '-w %d.%03d' $(($1 / 1000)) $(($1 % 1000)) ;;
  esac
}

hold() { # number lock hold timeout
  local here=$dir/$3 option
  read -ra option <<<"$(limit "$4")"
  rm -f "$here".*
  mkfifo "$here.go" "$here.code"
  # It may be let go before it reads, and when it reads no more.
  exec 9<>"$here.go"
  # The number is noted before it waits: who sees it wait may want to end it.
  (
    echo "$BASHPID" >"$here.pid"
    exec "$IPCMUTEX" run "${option[@]}" "${url[$2]}" -- bash -c \
      'touch "$1.in"; echo "$0 OK token=$IPCMUTEX_TOKEN abandoned=$IPCMUTEX_ABANDONED pid=$PPID"; read -r _ <"$1.go"' "$1" "$here" 2>"$here.err" 9>&-
  ) &
  wait $!
  local code=$?
  # Also what is told besides the answer is read by who drives us.
  cat "$here.err" >&2
  if [ -e "$here.in" ]; then mv "$here.in" "$here.out"; echo "$code" >"$here.code"; else say "$1 EXIT$code | $(one_line "$here.err")"; fi
}

answer() {
  local number=$1 code out
  case $2 in
    open | status | break)
      [ "$2" != open ] || url[$3]=$(unhex "$4"; echo .) url[$3]=${url[$3]%.}
      out=$("$IPCMUTEX" $([ "$2" = break ] && echo break || echo status --json) "${url[$3]}" 2>"$dir/err")
      code=$?
      cat "$dir/err" >&2
      if [ $code = 0 ]; then say "$number OK | $out"; else say "$number EXIT$code | $(one_line "$dir/err")"; fi
      ;;
    waiter) say "$number OK pid=$(<"$dir/$3.pid")" ;;
    cancel) kill -TERM "$(<"$dir/${wait[$3]}.pid")" && say "$number OK" ;;
    end)
      [ -e "$dir/$3.lost" ] || echo >"$dir/$3.go"
      read -r code <"$dir/$3.code"
      [ "$code" = 0 ] && say "$number OK" || say "$number EXIT$code"
      ;;
    hammer) # as ../src/occupancy.rs has it; "none" takes no lock
      local count=0 met=0 until=$(($(date +%s%3N) + $6)) run=()
      [ "$7" = none ] || run=("$IPCMUTEX" run "${url[$3]}" --)
      while [ "$(date +%s%3N)" -lt "$until" ]; do
        "${run[@]}" "$VISIT" visit "$4" "$5" 2>>"$dir/hammer.err"
        code=$?
        case $code in
          0) ;;
          3) met=$((met + 1)) ;;
          *) say "$number EXIT$code | $(one_line "$dir/hammer.err")"; return ;;
        esac
        count=$((count + 1))
      done
      say "$number OK count=$count overlaps=$met"
      ;;
    lost)
      touch "$dir/$3.lost"
      read -r code <"$dir/$3.code"
      say "$number EXIT$code | $(one_line "$dir/$3.err")"
      echo "$code" >"$dir/$3.code" &
      ;;
  esac
}

while read -r number command a b c d e; do
  case $command in
    \&hold | hold) hold "$number" "$a" "$b" "$c" & ;;
    \&acquire) hold "$number" "$a" "handle" "$b" & ;;
    \&async) wait[$d]=$b; hold "$number" "$a" "$b" "$c" & ;;
    \&*) answer "$number" "${command#&}" "$a" "$b" "$c" "$d" "$e" & ;;
    *) answer "$number" "$command" "$a" "$b" "$c" "$d" "$e" ;;
  esac
done
for inside in "$dir"/*.in; do
  [ ! -e "$inside" ] || echo >"${inside%.in}.go"
done
