"use strict"

// Builds the addon with cargo alone and puts it beside this file. IPCMUTEX_PROFILE names the cargo profile.

const { spawnSync } = require("node:child_process")
const fs = require("node:fs")
const path = require("node:path")

const profile = process.env.IPCMUTEX_PROFILE || "release"
const cargo = process.env.CARGO || "cargo"
const built = spawnSync(
    cargo,
    ["build", "--lib", "--profile", profile, "--message-format=json-render-diagnostics"],
    { cwd: __dirname, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8", maxBuffer: 1 << 28 }
)
if (built.error) {
    const missing = built.error.code === "ENOENT"
    console.error(missing ? "ipcmutex: cargo is needed to build the addon, see https://rustup.rs" : built.error)
    process.exit(1)
}
if (built.status !== 0) {
    process.exit(built.status ?? 1)
}
const library = built.stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line))
    .filter((message) => message.reason === "compiler-artifact" && message.target.name === "ipcmutex_node")
    .flatMap((message) => message.filenames)
    .find((file) => file.endsWith(".so") || file.endsWith(".dylib"))
// A new file under a new inode: a running process keeps the one it has loaded.
const target = path.join(__dirname, "ipcmutex.node")
fs.copyFileSync(library, `${target}.new`)
fs.renameSync(`${target}.new`, target)
