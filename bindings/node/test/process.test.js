"use strict"

const assert = require("node:assert")
const { spawn, spawnSync } = require("node:child_process")
const fs = require("node:fs")
const path = require("node:path")
const test = require("node:test")
const { Worker } = require("node:worker_threads")

const Mutex = require("..")
const { name, folder, run } = require("./helper.js")

const load = "const Mutex = require(process.env.IPCMUTEX_TEST);"

test("n4 64 waiters do not hold up fs.readFile, with one thread in libuv's pool", async () => {
    const { code, out, err } = await run(`${load}
        const fs = require("node:fs")
        const mutex = new Mutex("spm:crowd")
        mutex.acquire().then(async () => {
            const waits = Array.from({ length: 64 }, () => mutex.acquire())
            const since = process.hrtime.bigint()
            for (let round = 0; round < 20; round++) await fs.promises.readFile("/proc/self/status")
            console.log(Number(process.hrtime.bigint() - since) / 20e6, (await mutex.status()).waiters)
            for (const wait of waits) { await mutex.release(); await wait }
            await mutex.release()
        })`, { env: { UV_THREADPOOL_SIZE: "1" } })
    assert.strictEqual(code, 0, err)
    const [ms, waiters] = out.trim().split(" ").map(Number)
    assert.strictEqual(waiters, 64)
    assert.ok(ms < 50, `a readFile took ${ms} ms`)
})

for (const engine of ["spm", "mpm"]) {
    const url = (t) => engine === "spm" ? `spm:${name()}` : `mpm:${path.join(folder(t), "lock")}`

    test(`n2 ${engine}: an idle mutex and a hold do not keep the process alive`, async (t) => {
        const { code, err } = await run(`${load}
            const idle = new Mutex(${JSON.stringify(url(t))})
            idle.open().then(() => idle.acquire()).then((hold) => { hold.signal.onabort = () => {} })`)
        assert.strictEqual(code, 0, err)
    })

    test(`n2 ${engine}: a pending acquire keeps it alive until it is served`, async (t) => {
        const { code, out, err } = await run(`${load}
            const mutex = new Mutex(${JSON.stringify(url(t))})
            mutex.acquire().then((hold) => {
                mutex.acquire({ timeout: 300 }).catch((error) => console.log(error.code))
            })`)
        assert.strictEqual(code, 0, err)
        assert.strictEqual(out.trim(), "ERR_IPCMUTEX_TIMEOUT")
    })

    for (const [how, end, status] of [
        ["process.exit()", "process.exit(3)", 3],
        ["an uncaught exception", "throw new Error('out')", 1],
        ["process.exit() with waiters", "for (let n = 0; n < 9; n++) mutex.acquire(); setImmediate(() => process.exit(4))", 4]
    ]) {
        test(`n1 ${engine}: ${how} while holding ends cleanly`, async (t) => {
            const lock = url(t)
            const { code, signal, err } = await run(`${load}
                const mutex = new Mutex(${JSON.stringify(lock)})
                mutex.acquire().then(() => setImmediate(() => { ${end} }))`)
            assert.strictEqual(signal, null)
            assert.strictEqual(code, status, err)
            const next = await new Mutex(lock).acquire({ timeout: 5000 })
            await next.release()
        })
    }
}

for (const end of ["SIGKILL", "SIGTERM"]) test(`n1 mpm: a holder that ends by ${end} frees the lock, and the next one is told`, async (t) => {
    const url = `mpm:${path.join(folder(t), "lock")}`
    const mutex = new Mutex(url)
    let taken
    const { signal } = await run(`${load}
        new Mutex(${JSON.stringify(url)}).acquire().then(() => { console.log("held"); setInterval(() => {}, 1000) })`, {
        onLine: async (line, child) => {
            taken = mutex.acquire()
            child.kill(end)
        }
    })
    assert.strictEqual(signal, end)
    const hold = await taken
    assert.strictEqual(hold.abandoned, true)
    await hold.release()
})

test("a relative path is the file that it was when the object was made", async (t) => {
    const place = fs.realpathSync(folder(t))
    const { code, err } = await run(`${load}
        const assert = require("node:assert")
        const fs = require("node:fs")
        process.chdir(${JSON.stringify(place)})
        fs.mkdirSync("elsewhere")
        const mutex = new Mutex("mpm:./lock")
        const holder = new Mutex("mpm:./lock").acquireSync()
        process.chdir("elsewhere")
        mutex.tryAcquire().then(async (hold) => {
            assert.strictEqual(hold, null)
            await mutex.close()
            await mutex.open()
            assert.strictEqual(await mutex.tryAcquire(), null)
            assert.deepStrictEqual(fs.readdirSync("."), [])
            assert.strictEqual(mutex.url, ${JSON.stringify(`mpm:${place}/lock`)})
        })`)
    assert.strictEqual(code, 0, err)
})

/*  How often a worker is terminated: IPCMUTEX_TERMINATIONS=1000 for a long look.  */
const ROUNDS = Number(process.env.IPCMUTEX_TERMINATIONS ?? 20)

const worker = (script, workerData) => new Worker(script, { eval: true, workerData: { ...workerData, module: path.join(__dirname, "..") } })
const started = (thread) => new Promise((resolve, reject) => { thread.once("message", resolve); thread.once("error", reject) })

test("n8 worker threads share the lock", async () => {
    const url = `spm:${name()}`
    const mutex = new Mutex(url)
    const hold = await mutex.acquire()
    const thread = worker(`
        const { workerData, parentPort } = require("node:worker_threads")
        const Mutex = require(workerData.module)
        const mutex = new Mutex(workerData.url)
        mutex.tryAcquire().then(async (hold) => {
            parentPort.postMessage(hold === null)
            await (await mutex.acquire()).release()
        })`, { url })
    assert.strictEqual(await started(thread), true)
    const exited = new Promise((resolve) => thread.once("exit", resolve))
    await hold.release()
    assert.strictEqual(await exited, 0)
})

/*  Each environment counts its calls by itself, so their numbers meet; the thread of one may be what ends the wait of another.  */
test("n8 worker threads whose calls have the same numbers never get each other's holds", { timeout: 300000 }, async (t) => {
    const url = `mpm:${folder(t)}/lock`
    const threads = [1, 2, 3].map(() => worker(`
        const { workerData, parentPort } = require("node:worker_threads")
        const addon = require(workerData.module + "/native.js").load()
        const events = new addon.Events(() => {
            for (const { value } of events.take()) {
                turn(value)
            }
        })
        events.keepAlive(true)
        const mutex = addon.openSync(workerData.url)
        let turns = 0
        function turn (taken) {
            addon.releaseHold(mutex, typeof taken === "bigint" ? taken : taken.token)
            if (++turns % 20 === 0) {
                setImmediate(go)
            } else {
                go()
            }
        }
        function go () {
            if (turns === 60000) {
                events.keepAlive(false)
                return parentPort.postMessage(turns)
            }
            const taken = addon.tryAcquire(mutex) ?? events.acquire(7, mutex, Infinity)
            if (taken !== null) {
                turn(taken)
            }
        }
        go()`, { url }))
    assert.deepStrictEqual(await Promise.all(threads.map(started)), [60000, 60000, 60000])
})

for (const [what, script] of [
    ["waiting", "mutex.acquire(); parentPort.postMessage(0)"],
    ["waiting synchronously", "parentPort.postMessage(0); mutex.acquireSync()"]
]) {
    test(`n3 a worker that is terminated while ${what} leaves the line`, { timeout: 60000 + 500 * ROUNDS }, async () => {
        const url = `spm:${name()}`
        const mutex = new Mutex(url)
        const hold = await mutex.acquire()
        for (let round = 0; round < ROUNDS; round++) {
            const thread = worker(`
                const { workerData, parentPort } = require("node:worker_threads")
                const Mutex = require(workerData.module)
                const mutex = new Mutex(workerData.url)
                ${script}`, { url })
            await started(thread)
            await thread.terminate()
            assert.strictEqual((await mutex.status()).waiters, 0)
        }
        await hold.release()
        await mutex.execute(() => {})
    })
}

test("n3 a worker that is terminated while holding, or while it is being granted, releases", { timeout: 120000 }, async () => {
    const url = `spm:${name()}`
    const mutex = new Mutex(url)
    for (let round = 0; round < 40; round++) {
        const before = round % 2 === 0 ? await mutex.acquire() : null
        const thread = worker(`
            const { workerData, parentPort } = require("node:worker_threads")
            const Mutex = require(workerData.module)
            const mutex = new Mutex(workerData.url)
            const loop = async () => { for (;;) { const hold = await mutex.acquire(); await hold.release() } }
            ${round % 4 === 1 ? "mutex.acquire()" : "loop()"}
            parentPort.postMessage(0)`, { url })
        await started(thread)
        await before?.release()
        await thread.terminate()
        await (await mutex.acquire({ timeout: 5000 })).release()
    }
})

/*  The launcher of the command, with what `command` is beside it, which is found by a link; by itself or behind `before`.  */
const launch = (t, command, args, { before = [], env = {}, input = "", onLine = () => {} } = {}) => {
    const place = path.join(folder(t), "a place")
    const link = path.join(place, ".bin")
    fs.mkdirSync(path.join(place, "bin"), { recursive: true })
    fs.copyFileSync(path.join(__dirname, "../bin/ipcmutex.js"), path.join(place, "bin/ipcmutex.js"))
    fs.writeFileSync(path.join(place, "native.js"), `exports.command = () => { ${command} }`)
    fs.symlinkSync("bin/ipcmutex.js", link)
    const [file, ...rest] = [...before, link, ...args]
    const PATH = `${path.dirname(process.execPath)}:${process.env.PATH}`
    const child = spawn(file, rest, { stdio: ["pipe", "pipe", "pipe", "pipe"], env: { ...process.env, PATH, ...env } })
    const timer = setTimeout(() => child.kill("SIGKILL"), 60000)
    const said = ["", "", "", ""]
    for (const at of [1, 2, 3]) {
        child.stdio[at].on("data", (data) => { said[at] += data })
    }
    child.stdout.on("data", (data) => onLine(String(data).trim(), child))
    child.stdin.on("error", () => {}).end(input)
    return new Promise((resolve) => child.on("close", (code, signal) => {
        clearTimeout(timer)
        resolve({ code, signal, out: said[1], err: said[2], third: said[3] })
    }))
}

const NODE = [process.execPath]

for (const [what, command, text, options] of [
    ["no addon", "throw new Error('ipcmutex: no prebuilt package')", "ipcmutex: no prebuilt package"],
    ["no addon, by Node", "throw new Error('ipcmutex: no prebuilt package')", "ipcmutex: no prebuilt package", { before: NODE }],
    ["nothing is there", "return '/nowhere/ipcmutex'", "ipcmutex: /nowhere/ipcmutex cannot be executed; install"],
    ["a folder is there", "return __dirname", "ipcmutex: /"],
    ["it is not executable", "return __filename", "ipcmutex: /"],
    ["no Node", "return '/bin/sh'", "ipcmutex: node is not in the PATH", { env: { PATH: "/nowhere" } }],
    ["a spawn that is refused at once", "return 'x\\0'", "ipcmutex: The argument 'file'", { before: NODE }],
    ["a spawn that fails", "return '/nowhere/ipcmutex'", "ipcmutex: spawn /nowhere/ipcmutex ENOENT; install", { before: NODE }]
]) test(`a command that cannot be launched is 66, not "held": ${what}`, async (t) => {
    const { code, err } = await launch(t, command, [], options)
    assert.strictEqual(code, 66, err)
    assert.ok(err.startsWith(text) && err.trim().split("\n").length === 1, err)
})

/*  Those that can be /bin/sh, as far as they are here.  */
for (const shell of [["dash"], ["bash", "--posix"], ["busybox", "sh"]]) {
    const missing = spawnSync(shell[0], ["--help"]).error !== undefined && `needs ${shell[0]}`
    test(`a command that the kernel refuses is 66: ${shell[0]}`, { skip: missing }, async (t) => {
        const refused = path.join(folder(t), "ipcmutex")
        fs.writeFileSync(refused, "#!/nowhere/sh\n", { mode: 0o755 })
        const { code, err } = await launch(t, `return ${JSON.stringify(refused)}`, [], { before: shell })
        assert.strictEqual(code, 66, err)
        assert.ok(err.includes(refused), err)
    })
}

test("the launcher becomes the command: arguments, environment, stdin, descriptors and the exit code are its own", async (t) => {
    const noise = path.join(folder(t), "noise.js")
    fs.writeFileSync(noise, "console.log('noise')")
    const env = { NODE_OPTIONS: `--require=${noise}`, file: "file", self: "self" }
    const script = `
        printf '<%s>' "$@" "$NODE_OPTIONS" "$file" "$self"
        env | grep _ipcmutex
        cat
        echo third >&3
        exit 9`
    const args = ["two words", "two\nlines", "", "-e", "*"]
    const { code, out, err, third } = await launch(t, "return '/bin/sh'", ["-c", script, "sh", ...args], { env, input: "typed" })
    assert.strictEqual(code, 9, err)
    assert.strictEqual(out, [...args, ...Object.values(env)].map((text) => `<${text}>`).join("") + "typed")
    assert.strictEqual(third, "third\n")
    assert.strictEqual(err, "")
})

test("the launcher without arguments gives none", async (t) => {
    const { code, out } = await launch(t, "return '/usr/bin/env'", [], { env: { IPCMUTEX_HERE: "here" } })
    assert.strictEqual(code, 0)
    assert.match(out, /^IPCMUTEX_HERE=here$/m)
})

test("a signal that the launcher ignores is ignored by the command", async (t) => {
    const before = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]
    const { code, err } = await launch(t, "return '/bin/sh'", ["-c", "kill -HUP $$; exit 7"], { before })
    assert.strictEqual(code, 7, err)
})

for (const [way, before, signals] of [
    ["the launcher", [], ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT"]],
    ["the launcher, run by Node,", NODE, ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]]
]) {
    for (const signal of signals) test(`${way} passes ${signal} on`, async (t) => {
        const script = `trap 'kill $!; exit 7' ${signal.slice(3)}; sleep 60 & echo in; wait`
        const onLine = (line, child) => child.kill(signal)
        const { code, err } = await launch(t, "return '/bin/sh'", ["-c", script], { before, onLine })
        assert.strictEqual(code, 7, err)
        assert.strictEqual(err, "")
    })
}
