"use strict"

// Where there is no prebuilt package for this platform, builds the addon and the `ipcmutex` command, with cargo alone.
// IPCMUTEX_PROFILE names the cargo profile; IPCMUTEX_BUILD=1 builds also where there is one.

const { spawnSync } = require("node:child_process")
const fs = require("node:fs")
const os = require("node:os")
const path = require("node:path")

const { load } = require("./native.js")

const packed = path.join(__dirname, "rust")
const sources = fs.existsSync(packed) ? packed : path.join(__dirname, "..", "..")
const profile = process.env.IPCMUTEX_PROFILE || "release"

/*  As @napi-rs/cli names them.  */
const libc = process.report.getReport().header.glibcVersionRuntime ? "gnu" : "musl"
const platform = `${process.platform}-${process.arch}-${libc}`
const file = `ipcmutex.${platform}.node`

/*  Runs cargo, and gives the file that it built.  */
function build (folder, target, kind, wanted, environment) {
    const built = spawnSync(
        process.env.CARGO || "cargo",
        ["build", "--locked", ...kind, "--profile", profile, "--message-format=json-render-diagnostics"],
        { cwd: path.join(sources, folder), env: environment, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8", maxBuffer: 1 << 28 }
    )
    if (built.error) {
        const missing = built.error.code === "ENOENT"
        throw missing ? new Error("cargo is needed to build the addon, see https://rustup.rs") : built.error
    }
    if (built.status !== 0) {
        throw new Error(`cargo failed with ${built.status ?? built.signal}`)
    }
    return built.stdout
        .split("\n")
        .filter((line) => line.startsWith("{"))
        .map((line) => JSON.parse(line))
        .filter((message) => message.reason === "compiler-artifact" && message.target.name === target)
        .flatMap((message) => [message.executable, ...message.filenames])
        .find((name) => name && wanted.test(name))
}

/*  A new file under a new inode: a running process keeps the one it has loaded.  */
function put (source, target) {
    fs.mkdirSync(path.dirname(target), { recursive: true })
    fs.copyFileSync(source, `${target}.new`)
    fs.renameSync(`${target}.new`, target)
}

/*  Builds both, and puts them into `folder`.  */
function buildInto (folder) {
    /*  In an installed package nobody needs what cargo leaves behind, and it is large.  */
    const scratch = sources === packed && !process.env.CARGO_TARGET_DIR && fs.mkdtempSync(path.join(os.tmpdir(), "ipcmutex-"))
    const environment = scratch ? { ...process.env, CARGO_TARGET_DIR: scratch } : process.env
    try {
        put(build("bindings/node", "ipcmutex_node", ["--lib"], /\.(so|dylib)$/, environment), path.join(folder, file))
        put(build("bindings/cli", "ipcmutex", ["--bin", "ipcmutex"], /ipcmutex$/, environment), path.join(folder, "bin", "ipcmutex"))
    } finally {
        if (scratch) {
            fs.rmSync(scratch, { recursive: true })
        }
    }
}

function wanted () {
    if (sources !== packed || process.env.IPCMUTEX_BUILD === "1") {
        return true
    }
    try {
        load()
        return false
    } catch {
        return true
    }
}

if (require.main === module && wanted()) {
    try {
        buildInto(__dirname)
    } catch (error) {
        console.error(`ipcmutex: ${error.message}`)
        process.exitCode = 1
    }
}

module.exports = { buildInto, file, platform }
