"use strict"

/*  The connection that an event loop reads itself.  */

const assert = require("node:assert")
const fs = require("node:fs")
const net = require("node:net")
const path = require("node:path")
const test = require("node:test")
const { Worker } = require("node:worker_threads")

const Mutex = require("..")
const { redis, run } = require("./helper.js")

const code = (word) => ({ code: `ERR_IPCMUTEX_${word}` })

/*  What the server answers, once it has.  */
const ask = (server, words) => new Promise((resolve, reject) => {
    const [, secret, socket] = /:([^:@]*)@(.*)/.exec(server)
    const wire = net.connect(socket, () => wire.write(`AUTH ${secret}\r\n${words}\r\n`))
    let lines = ""
    wire.on("data", (data) => {
        lines += data
        if (lines.split("\r\n").length > 2) {
            wire.destroy()
            resolve(lines.split("\r\n")[1])
        }
    })
    wire.once("error", reject)
})

/*  The library's threads that ask servers for who must not wait.  */
const askers = () => fs.readdirSync("/proc/self/task").filter((id) => {
    try {
        return fs.readFileSync(path.join("/proc/self/task", id, "comm"), "latin1").startsWith("ipcmutex-io")
    } catch {
        return false /*  it has just ended  */
    }
}).length

/*  Takes turns until no thread takes part any more.  */
const warm = async (mutex) => {
    do {
        for (let turn = 0; turn < 20; turn++) {
            await (await mutex.acquire()).release()
        }
    } while (askers() > 0)
}

const block = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

test("redis, on the event loop's own connection", { timeout: 120000 }, async (t) => {
    const server = await redis(t)
    if (server === null) {
        return t.skip("no redis-server")
    }
    let count = 0
    const url = (more = "") => `${server}?id=own-${++count}${more}`

    await t.test("no thread is on the way, and what the connections are cut in goes on", async () => {
        const mutex = new Mutex(url())
        await warm(mutex)
        let token = 0n
        for (let round = 0; round < 100; round++) {
            const taking = mutex.acquire()
            const cut = round % 3 === 0 ? ask(server, "CLIENT KILL TYPE normal") : null
            const hold = await taking
            assert.ok(hold.token > token)
            token = hold.token
            const release = hold.release()
            if (round % 3 === 1) {
                await ask(server, "CLIENT KILL TYPE normal")
            }
            await Promise.all([cut, release])
            /*  One cut in each call: the other connection was cut, too.  */
            assert.strictEqual((await mutex.status()).state, "free")
        }
        await warm(mutex)
        assert.strictEqual((await mutex.status()).state, "free")
        await mutex.close()
    })

    await t.test("waits are served in order, whichever way they come", async () => {
        const mutex = new Mutex(url())
        await warm(mutex)
        const served = []
        let inside = 0
        await Promise.all(Array.from({ length: 50 }, async (_, at) => {
            const hold = await mutex.acquire()
            assert.strictEqual(++inside, 1)
            served.push(at)
            await new Promise(setImmediate)
            inside--
            await hold.release()
        }))
        assert.deepStrictEqual(served, served.toSorted((a, b) => a - b))
        await mutex.close()
    })

    await t.test("a try, a timeout and a misuse are told as ever", async () => {
        const name = url()
        const [one, two] = [new Mutex(name), new Mutex(name)]
        await warm(one)
        await two.open()
        const hold = await one.acquire()
        assert.strictEqual(await one.tryAcquire(), null)
        await assert.rejects(two.acquire({ timeout: 30 }), code("TIMEOUT"))
        await one.breakLock()
        await assert.rejects(hold.release(), code("LOST"))
        await assert.rejects(one.release(), code("NOT_OWNER"))
        /*  Who gave up may be served first, and refuse.  */
        await (await two.acquire({ timeout: 10000 })).release()
        await one.close()
        await assert.rejects(one.acquire(), code("CLOSED"))
        await two.close()
    })

    await t.test("what it takes while the event loop is blocked is renewed", async () => {
        const mutex = new Mutex(url("&ttl=1s"))
        await warm(mutex)
        const taking = mutex.acquire()
        await new Promise((resolve) => process.nextTick(resolve))
        block(3000)
        const hold = await taking
        hold.check()
        /*  A token is about the time of its take, in microseconds.  */
        assert.ok(hold.token < BigInt(Date.now() - 1500) * 1000n, "it was not taken anew")
        await hold.release()
        await mutex.close()
    })

    await t.test("a server that is silent is UNAVAILABLE, and used again", async () => {
        const mutex = new Mutex(url())
        await warm(mutex)
        await ask(server, "CLIENT PAUSE 3000")
        await assert.rejects(mutex.acquire({ timeout: 50 }), code("UNAVAILABLE"))
        await (await mutex.acquire()).release()
        await warm(mutex)
        await mutex.close()
    })

    for (const end of ["process.exit(0)", "process.exitCode = 0; throw 1"]) {
        await t.test(`a process that ends by "${end}" with a take under way leaves nothing`, async () => {
            const name = url("&ttl=1h")
            for (let round = 0; round < 5; round++) {
                const { signal, err } = await run(`
                    const Mutex = require(process.env.IPCMUTEX_TEST)
                    const mutex = new Mutex(${JSON.stringify(name)})
                    ;(async () => {
                        for (let turn = 0; turn < 20; turn++) {
                            await (await mutex.acquire()).release()
                        }
                        mutex.acquire()
                        process.nextTick(() => { ${end} })
                    })()`)
                assert.strictEqual(signal, null, err)
                await (await new Mutex(name).acquire({ timeout: 10000 })).release()
            }
        })
    }

    await t.test("a worker that is terminated leaves nothing, and its connection's place to others", async () => {
        const name = url("&ttl=1h")
        const mutex = new Mutex(name)
        for (let round = 0; round < 5; round++) {
            const worker = new Worker(`
                const Mutex = require(${JSON.stringify(path.join(__dirname, ".."))})
                const mutex = new Mutex(${JSON.stringify(name)})
                ;(async () => {
                    for (let turn = 0; ; turn++) {
                        await (await mutex.acquire()).release()
                        if (turn === 50) require("node:worker_threads").parentPort.postMessage("warm")
                    }
                })()`, { eval: true })
            await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject))
            await worker.terminate()
            await (await mutex.acquire({ timeout: 10000 })).release()
        }
        await warm(mutex)
        await mutex.close()
    })
})
