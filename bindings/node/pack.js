"use strict"

// Builds what goes to npm: the package, which can also be built from source, and the prebuilt one of this platform.
//
//     node pack.js FOLDER

const { execFileSync } = require("node:child_process")
const fs = require("node:fs")
const os = require("node:os")
const path = require("node:path")

const { buildInto, file, platform } = require("./install.js")

const PREBUILT = ["linux-x64-gnu", "linux-arm64-gnu", "linux-x64-musl", "linux-arm64-musl"]
const LIBC = { gnu: "glibc", musl: "musl" }

const root = path.join(__dirname, "..", "..")
const own = require("./package.json")

function pack (folder, into) {
    execFileSync("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination", into], { cwd: folder, stdio: ["ignore", "ignore", "inherit"] })
}

function write (folder, name, text) {
    fs.mkdirSync(path.dirname(path.join(folder, name)), { recursive: true })
    fs.writeFileSync(path.join(folder, name), text)
}

/*  What git does not ignore in a folder, so that nothing is packed which was built there.  */
function copy (folder, into) {
    const files = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", folder], { cwd: root, encoding: "utf8" })
    for (const file of files.split("\0").filter((file) => file !== "")) {
        fs.mkdirSync(path.dirname(path.join(into, file)), { recursive: true })
        fs.copyFileSync(path.join(root, file), path.join(into, file))
    }
}

/*  The workspace without the members that the addon and the command do not need, and a lock file to match.  */
function packSources (into) {
    const members = ["core", "bindings/node", "bindings/cli"]
    for (const folder of [...members, "Cargo.toml", "Cargo.lock", "README.md", "LICENSE"]) {
        copy(folder, into)
    }
    for (const script of ["index.js", "native.js", "loader.js", "generate.js", "install.js", "pack.js", "test", "bin"]) {
        fs.rmSync(path.join(into, "bindings/node", script), { recursive: true })
    }
    const workspace = fs.readFileSync(path.join(root, "Cargo.toml"), "utf8")
    const reduced = workspace
        .replace(/^members = \[[^\]]*\]/m, `members = ${JSON.stringify(members)}`)
        .replace(/^\[profile\.dev\.package\.[^[]*/m, "")
    write(into, "Cargo.toml", reduced)
    execFileSync("cargo", ["metadata", "--offline", "--format-version", "1"], { cwd: into, stdio: ["ignore", "ignore", "inherit"], maxBuffer: 1 << 28 })
}

function packMain (scratch, into) {
    const folder = path.join(scratch, "ipcmutex")
    for (const file of own.files) {
        fs.cpSync(path.join(__dirname, file), path.join(folder, file), { recursive: true })
    }
    for (const file of ["README.md", "LICENSE"]) {
        fs.copyFileSync(path.join(root, file), path.join(folder, file))
    }
    packSources(path.join(folder, "rust"))
    const manifest = {
        ...own,
        files: [...own.files, "rust"],
        scripts: { install: own.scripts.install },
        optionalDependencies: Object.fromEntries(PREBUILT.map((platform) => [`ipcmutex-${platform}`, own.version]))
    }
    write(folder, "package.json", `${JSON.stringify(manifest, null, 2)}\n`)
    pack(folder, into)
}

function packPrebuilt (scratch, into) {
    const name = `ipcmutex-${platform}`
    const folder = path.join(scratch, name)
    buildInto(folder)
    write(folder, "README.md", `The addon and the command of \`ipcmutex\` for ${platform}. Install \`ipcmutex\`.\n`)
    fs.copyFileSync(path.join(root, "LICENSE"), path.join(folder, "LICENSE"))
    const manifest = {
        name,
        version: own.version,
        description: `Prebuilt part of ipcmutex for ${platform}`,
        license: own.license,
        main: file,
        files: [file, "bin"],
        engines: own.engines,
        os: [process.platform],
        cpu: [process.arch],
        libc: [LIBC[platform.split("-").at(-1)]]
    }
    write(folder, "package.json", `${JSON.stringify(manifest, null, 2)}\n`)
    pack(folder, into)
}

const into = path.resolve(process.argv[2])
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "ipcmutex-pack-"))
try {
    fs.mkdirSync(into, { recursive: true })
    packMain(scratch, into)
    packPrebuilt(scratch, into)
} finally {
    fs.rmSync(scratch, { recursive: true })
}
