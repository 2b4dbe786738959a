"use strict"

// Where the addon and the `ipcmutex` command are: beside this file if they were built from source, else in the package of
// this platform, which npm has chosen by its "os", "cpu" and "libc".

const fs = require("node:fs")
const path = require("node:path")

/*  gnu first; where that cannot be loaded, musl.  */
const prebuilt = ["gnu", "musl"].map((libc) => `ipcmutex-${process.platform}-${process.arch}-${libc}`)

function load () {
    if (fs.existsSync(path.join(__dirname, "ipcmutex.node"))) {
        return { addon: require("./ipcmutex.node"), command: path.join(__dirname, "bin", "ipcmutex") }
    }
    const failures = []
    for (const name of prebuilt) {
        try {
            const manifest = require.resolve(`${name}/package.json`)
            return { addon: require(name), command: path.join(path.dirname(manifest), "bin", "ipcmutex") }
        } catch (error) {
            failures.push(error)
        }
    }
    /*  One that is there and cannot be loaded tells more than one that is not there.  */
    const cause = failures.find((error) => error.code !== "MODULE_NOT_FOUND") ?? failures[0]
    throw new Error(`ipcmutex: neither ${prebuilt.join(" nor ")} can be loaded, and it was not built from source; ` +
        "install without --omit=optional, or install Rust and run \"npm rebuild ipcmutex\"", { cause })
}

module.exports = { load, prebuilt }
