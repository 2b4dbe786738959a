"use strict"

// What a program written for ipc-mutex does, with ours in its place: new Mutex, open, acquire, release, close, and nothing else.

const assert = require("node:assert")
const path = require("node:path")
const test = require("node:test")

const Mutex = require("..")
const { name, folder, run } = require("./helper.js")

for (const engine of ["spm", "mpm"]) {
    const url = (t) => engine === "spm" ? `spm:${name()}` : `mpm:${path.join(folder(t), "lock")}`

    test(`${engine}: the sample of ipc-mutex`, async (t) => {
        const mutex = new Mutex(url(t))
        await mutex.open()
        await mutex.acquire()
        await mutex.release()
        await mutex.close()
    })

    test(`${engine}: what ipc-mutex refuses is refused in its words`, async (t) => {
        const mutex = new Mutex(url(t))
        for (const call of ["release", "close"]) {
            await assert.rejects(mutex[call](), /not opened/)
        }
        await mutex.open()
        await assert.rejects(mutex.open(), /already opened/)
        await assert.rejects(mutex.release(), /not acquired/)
        await mutex.close()
        await assert.rejects(mutex.close(), /not opened/)
    })

    test(`${engine}: many at once go one by one`, async (t) => {
        const lock = url(t)
        let inside = 0
        let done = 0
        await Promise.all(Array.from({ length: 20 }, async () => {
            const mutex = new Mutex(lock)
            await mutex.open()
            for (let round = 0; round < 20; round++) {
                await mutex.acquire()
                assert.strictEqual(++inside, 1)
                await new Promise(setImmediate)
                inside--
                done++
                await mutex.release()
            }
            await mutex.close()
        }))
        assert.strictEqual(done, 400)
    })
}

/*  Each process counts a file up 50 times, reading and writing in two steps.  */
const COUNT = `
    const fs = require("node:fs")
    const Mutex = require(process.env.IPCMUTEX_TEST)
    async function count (url, file) {
        const mutex = new Mutex(url)
        await mutex.open()
        for (let round = 0; round < 50; round++) {
            await mutex.acquire()
            const before = Number(fs.readFileSync(file, "utf8"))
            await new Promise(setImmediate)
            fs.writeFileSync(file, String(before + 1))
            await mutex.release()
        }
        await mutex.close()
    }`

test("n8 the workers of a cluster exclude each other", async (t) => {
    const here = folder(t)
    const [url, file] = [`mpm:${path.join(here, "lock")}`, path.join(here, "count")]
    const { code, out, err } = await run(`${COUNT}
        const cluster = require("node:cluster")
        const [url, file] = ${JSON.stringify([url, file])}
        if (cluster.isPrimary) {
            fs.writeFileSync(file, "0")
            let left = 3
            for (let n = 0; n < 3; n++) {
                cluster.fork().on("exit", (code) => {
                    if (code !== 0) process.exit(2)
                    if (--left === 0) console.log(fs.readFileSync(file, "utf8"))
                })
            }
        } else {
            count(url, file).then(() => cluster.worker.disconnect())
        }`, { file: path.join(here, "main.js") })
    assert.strictEqual(code, 0, err)
    assert.strictEqual(out.trim(), "150")
})

test("n8 child_process.fork, and two copies of the module in one process", async (t) => {
    const here = folder(t)
    const url = `mpm:${path.join(here, "lock")}`
    const { code, out, err } = await run(`
        const Mutex = require(process.env.IPCMUTEX_TEST)
        const { fork } = require("node:child_process")
        const fs = require("node:fs")
        const path = require("node:path")
        const url = ${JSON.stringify(url)}
        async function main () {
            if (process.send) {
                const mutex = new Mutex(url)
                process.send(await mutex.tryAcquire() === null ? "held" : "free")
                await (await mutex.acquire()).release()
                process.disconnect()
                return
            }
            const local = "spm:" + process.pid
            const hold = await new Mutex(local).acquire()
            fs.cpSync(process.env.IPCMUTEX_TEST, path.join(__dirname, "copy"), { recursive: true })
            const Copy = require("./copy")
            if (Copy === Mutex) throw new Error("it is the same copy")
            if (await new Copy(local).tryAcquire() !== null) throw new Error("the copies do not know each other")
            await hold.release()

            const mutex = new Mutex(url)
            await mutex.acquire()
            const child = fork(process.argv[1])
            const said = await new Promise((resolve) => child.once("message", resolve))
            const ended = new Promise((resolve) => child.once("exit", resolve))
            await mutex.release()
            console.log(said, await ended)
        }
        main()`, { file: path.join(here, "main.js") })
    assert.strictEqual(code, 0, err)
    assert.strictEqual(out.trim(), "held 0")
})
