#!/bin/sh
":" /* A shell script, and to Node a comment.
# It becomes the command of this platform: the signals, also those that are ignored, the descriptors and the exit code are the command's
# own. Node only says which file that is.

# 66, as the command itself says that it cannot open a lock; 1 would mean that it is held.
fail () {
    printf 'ipcmutex: %s\n' "$1" >&2
    exit 66
}

command -v node >/dev/null || fail 'node is not in the PATH; it has to say which file the command is'
# NODE_OPTIONS are the command's, and might print something here. Nobody exports a variable of this name: those of the command stay as
# they are.
_ipcmutex=$(NODE_OPTIONS='' node -e '
    try {
        console.log(require(process.argv[1] + "/../../native.js").command())
    } catch (error) {
        console.log(error.message.split("\n", 1)[0])
        process.exitCode = 1
    }' "$(readlink -f "$0")" </dev/null) || fail "${_ipcmutex#ipcmutex: }"
[ -f "$_ipcmutex" ] && [ -x "$_ipcmutex" ] || fail "$_ipcmutex cannot be executed; install the package anew"

# Where that fails nevertheless, the shell says why, and leaves with a code of its own, which means something else: bash unless it is to go
# on, the others unless there is a trap.
shopt -s execfail 2>/dev/null
trap 'exit 66' EXIT
exec "$_ipcmutex" "$@"
exit 66
*/
"use strict"

// The same for Yarn, which runs every command with Node: Node can become no other program, so it starts the command and passes on what
// it can. The command holds the lock itself: if this launcher is killed, the lock stays held as long as what runs under it.

const { spawn } = require("node:child_process")

const { command } = require("../native.js")

/*  66, as the command itself says that it cannot open a lock; 1 would mean that it is held.  */
const fail = (text) => {
    console.error(`ipcmutex: ${text.replace(/^ipcmutex: /, "")}`)
    process.exitCode = 66
}

const launch = () => {
    const file = command()
    let child

    /*  Before it starts: from then on a signal may come. The terminal sends these to the command as well.  */
    for (const signal of ["SIGINT", "SIGQUIT"]) {
        process.on(signal, () => {})
    }
    for (const signal of ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]) {
        process.on(signal, () => child?.kill(signal))
    }
    child = spawn(file, process.argv.slice(2), { stdio: "inherit" })
    child.on("error", (error) => fail(`${error.message}; install the package anew`))
    child.on("exit", (code, signal) => {
        if (signal === null) {
            process.exitCode = code
        } else {
            process.removeAllListeners(signal)
            process.kill(process.pid, signal)
        }
    })
}

try {
    launch()
} catch (error) {
    fail(error.message)
}
