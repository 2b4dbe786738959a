"use strict"

// Builds the addon and the `ipcmutex` command with cargo alone. IPCMUTEX_PROFILE names the cargo profile.

const { spawnSync } = require("node:child_process")
const fs = require("node:fs")
const path = require("node:path")

const profile = process.env.IPCMUTEX_PROFILE || "release"

/*  Runs cargo, and gives the file that it built.  */
function build (folder, target, kind, file) {
    const built = spawnSync(
        process.env.CARGO || "cargo",
        ["build", ...kind, "--profile", profile, "--message-format=json-render-diagnostics"],
        { cwd: folder, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8", maxBuffer: 1 << 28 }
    )
    if (built.error) {
        const missing = built.error.code === "ENOENT"
        console.error(missing ? "ipcmutex: cargo is needed to build the addon, see https://rustup.rs" : built.error)
        process.exit(1)
    }
    if (built.status !== 0) {
        process.exit(built.status ?? 1)
    }
    return built.stdout
        .split("\n")
        .filter((line) => line.startsWith("{"))
        .map((line) => JSON.parse(line))
        .filter((message) => message.reason === "compiler-artifact" && message.target.name === target)
        .flatMap((message) => [message.executable, ...message.filenames])
        .find((name) => name && file.test(name))
}

/*  A new file under a new inode: a running process keeps the one it has loaded.  */
function put (source, target) {
    fs.mkdirSync(path.dirname(target), { recursive: true })
    fs.copyFileSync(source, `${target}.new`)
    fs.renameSync(`${target}.new`, target)
}

put(build(__dirname, "ipcmutex_node", ["--lib"], /\.(so|dylib)$/), path.join(__dirname, "ipcmutex.node"))
put(build(path.join(__dirname, "..", "cli"), "ipcmutex", ["--bin", "ipcmutex"], /ipcmutex$/), path.join(__dirname, "bin", "ipcmutex"))
