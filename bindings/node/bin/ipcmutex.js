#!/usr/bin/env node
"use strict"

// Runs the command of this platform. It holds the lock itself: if this launcher is killed, the lock stays held as
// long as what runs under it.

const { spawn } = require("node:child_process")

const { command } = require("../native.js")

const child = spawn(command(), process.argv.slice(2), { stdio: "inherit" })

/*  The terminal sends these to the command as well.  */
for (const signal of ["SIGINT", "SIGQUIT"]) {
    process.on(signal, () => {})
}
for (const signal of ["SIGTERM", "SIGHUP", "SIGUSR2"]) {
    process.on(signal, () => child.kill(signal))
}
child.on("error", (error) => {
    console.error(`ipcmutex: ${error.message}; install the package anew`)
    process.exitCode = 66
})
child.on("exit", (code, signal) => {
    if (signal === null) {
        process.exitCode = code
    } else {
        process.removeAllListeners(signal)
        process.kill(process.pid, signal)
    }
})
