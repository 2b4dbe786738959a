"use strict"

const { spawn } = require("node:child_process")
const fs = require("node:fs")
const os = require("node:os")
const path = require("node:path")

let count = 0

/*  The server's password: whatever a child says is searched for it.  */
const SECRET = "c4nary-in-node"

/*  A name that no other test uses.  */
exports.name = () => `node-test-${process.pid}-${++count}`

/*  A folder for lock files, removed after the test.  */
exports.folder = (t) => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "ipcmutex-"))
    t.after(() => fs.rmSync(folder, { recursive: true }))
    return folder
}

/*  Runs a script in a process of its own, out of `file` if it forks itself. A hang is ended by the watchdog and seen as a signal.  */
exports.run = (script, { file = null, env = {}, onLine = () => {}, watchdog = 60000 } = {}) => {
    if (file !== null) {
        fs.writeFileSync(file, script)
    }
    const child = spawn(process.execPath, file === null ? ["-e", script] : [file], {
        env: { ...process.env, ...env, IPCMUTEX_TEST: path.join(__dirname, "..") },
        stdio: ["pipe", "pipe", "pipe"]
    })
    const timer = setTimeout(() => child.kill("SIGKILL"), watchdog)
    let out = ""
    let err = ""
    child.stdout.on("data", (data) => {
        out += data
        for (const line of String(data).split("\n").filter(Boolean)) {
            onLine(line, child)
        }
    })
    child.stderr.on("data", (data) => { err += data })
    const since = process.hrtime.bigint()
    return new Promise((resolve, reject) => child.on("close", (code, signal) => {
        clearTimeout(timer)
        if ((out + err).includes(SECRET)) {
            reject(new Error("a secret shows"))
        }
        resolve({ code, signal, out, err, ms: Number(process.hrtime.bigint() - since) / 1e6 })
    }))
}

/*  A Redis of our own, as `rpm+redis+unix:///socket`; null if there is none to start.  */
exports.redis = async (t) => {
    const folder = exports.folder(t)
    const socket = path.join(folder, "socket")
    for (const program of ["redis-server", "valkey-server"]) {
        const server = spawn(program, ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder, "--requirepass", SECRET],
            { stdio: ["ignore", "pipe", "inherit"] })
        const ready = await new Promise((resolve) => {
            server.on("error", () => resolve(false))
            server.stdout.on("data", (data) => String(data).includes("eady to accept connections") && resolve(true))
        })
        if (ready) {
            t.after(() => new Promise((resolve) => server.on("close", resolve).kill("SIGKILL")))
            return `rpm+redis+unix://:${SECRET}@${socket}`
        }
    }
    if (process.env.IPCMUTEX_REQUIRE_REDIS) {
        throw new Error("no redis-server, and IPCMUTEX_REQUIRE_REDIS is set")
    }
    return null
}
