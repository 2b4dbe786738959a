#!/usr/bin/env node
"use strict"

// Runs the command of this platform. It holds the lock itself: if this launcher is killed, the lock stays held as
// long as what runs under it.

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
