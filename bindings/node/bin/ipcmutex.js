#!/usr/bin/env node
"use strict"

// Runs the command that install.js built. It holds the lock itself: if this launcher is killed, the lock stays held as
// long as what runs under it.

const { spawn } = require("node:child_process")
const path = require("node:path")

const child = spawn(path.join(__dirname, "ipcmutex"), process.argv.slice(2), { stdio: "inherit" })

/*  The terminal sends these to the command as well.  */
for (const signal of ["SIGINT", "SIGQUIT"]) {
    process.on(signal, () => {})
}
for (const signal of ["SIGTERM", "SIGHUP", "SIGUSR2"]) {
    process.on(signal, () => child.kill(signal))
}
child.on("error", (error) => {
    console.error(`ipcmutex: ${error.message}; run "npm rebuild ipcmutex"`)
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
