"use strict"

const assert = require("node:assert")
const { once } = require("node:events")
const fs = require("node:fs")
const net = require("node:net")
const test = require("node:test")
const { setTimeout: sleep } = require("node:timers/promises")

const Mutex = require("..")
const { redis, run } = require("./helper.js")

const code = (word) => ({ code: `ERR_IPCMUTEX_${word}` })

test("redis", async (t) => {
    const server = await redis(t)
    if (server === null) {
        return t.skip("no redis-server")
    }
    let count = 0
    const url = (more = "") => `${server}?id=node-${++count}${more}`

    await t.test("the four calls, two objects, timeouts and status", async () => {
        const name = url()
        const [one, two] = [new Mutex(name), new Mutex(name)]
        await one.open()
        await assert.rejects(one.open(), { ...code("INVALID"), message: /already opened/ })
        const hold = await one.acquire()
        await hold.extend()
        await hold.extend(5000)
        assert.strictEqual(await two.tryAcquire(), null)
        await assert.rejects(two.acquire({ timeout: 30 }), code("TIMEOUT"))
        assert.strictEqual((await two.status()).token, hold.token)
        const waiting = two.acquire()
        await one.release()
        assert.ok((await waiting).token > hold.token)
        await assert.rejects(one.release(), code("NOT_OWNER"))
        await two.close()
        assert.strictEqual((await one.status()).state, "free")
        await one.execute(() => {})
        one.acquireSync()
        one.releaseSync()
        await one.close()
        await assert.rejects(one.acquire(), code("CLOSED"))
    })

    await t.test("an acquire opens, and several share one opening", async () => {
        const mutex = new Mutex(url())
        let inside = 0
        await Promise.all(Array.from({ length: 10 }, () => mutex.execute(async () => {
            assert.strictEqual(++inside, 1)
            await new Promise(setImmediate)
            inside--
        })))
        await mutex.close()
    })

    await t.test("n7 a loss that nobody listens to is one warning in the log, and ends nothing", async () => {
        const { code: status, out, err } = await run(`
            const Mutex = require(process.env.IPCMUTEX_TEST)
            const [one, two] = [new Mutex(process.env.LOCK), new Mutex(process.env.LOCK)]
            const lost = (hold) => {
                try {
                    hold.check()
                } catch (error) {
                    return error.code === "ERR_IPCMUTEX_LOST"
                }
            }
            ;(async () => {
                const hold = await one.acquire()
                const turn = two.acquire() // the process listens while it waits
                while ((await one.status()).waiters === 0) {
                    await new Promise(setImmediate)
                }
                await two.breakLock()
                await (await turn).release()
                while (!lost(hold)) {
                    await new Promise(setImmediate)
                }
                process.on("exit", () => console.log("ends as ever", hold.token > 0n))
            })()`, { env: { LOCK: url(), IPCMUTEX_LOG: "warn" } })
        assert.deepStrictEqual([status, out], [0, "ends as ever true\n"], err)
        assert.strictEqual(err.match(/is lost/g)?.length, 1, err)
    })

    await t.test("an event loop turns though it does nothing but take a free lock", async () => {
        const mutex = new Mutex(url())
        await mutex.open()
        /*  By then the event loop has a connection of its own.  */
        for (let taken = 0; taken < 20; taken++) {
            await mutex.execute(() => new Promise(setImmediate))
        }
        for (let round = 0; round < 30; round++) {
            let turned = false
            setImmediate(() => { turned = true })
            for (let taken = 0; !turned; taken++) {
                assert.ok(taken <= 2, "the event loop did not turn")
                await mutex.execute(() => { for (const end = performance.now() + 6; performance.now() < end;); })
            }
        }
        /*  Who takes it seldom does not wait for that. The answer of a busy server may come too late to be there at once.  */
        for (let round = 0, atOnce = false; !atOnce; round++) {
            assert.ok(round < 500, "no acquisition was settled at once")
            await sleep(10)
            const done = mutex.execute(() => { atOnce = true })
            for (let turns = 0; turns < 20; turns++) {
                await null // no turn of the event loop
            }
            const came = atOnce
            await done
            atOnce = came
        }
        await mutex.close()
    })

    await t.test("a close overtakes an opening", async () => {
        const mutex = new Mutex(url())
        const opening = mutex.open()
        await mutex.close()
        await opening
        await assert.rejects(mutex.acquire(), code("CLOSED"))
        await mutex.open()
        await mutex.close()
    })

    await t.test("a Mutex has one lock at a time, in whatever order it is opened and closed", { timeout: 120000 }, async () => {
        const calls = ["open", "acquire", "acquireSync", "close"]
        let orders = [[]]
        for (let length = 0; length < 4; length++) {
            orders = orders.flatMap((order) => calls.map((call) => [...order, call]))
        }
        for (const order of orders) {
            const said = order.join()
            const name = url()
            const mutex = new Mutex(name)
            let state = "new"
            const waits = []
            const done = []
            /*  All in one go: what is being opened is not open before the last of them.  */
            for (const call of order) {
                const refused = { new: { close: "CLOSED" }, opening: { open: "INVALID" }, open: { open: "INVALID" },
                    closed: { acquire: "CLOSED", acquireSync: "CLOSED", close: "CLOSED" } }[state][call]
                if (call === "acquireSync") {
                    const sync = () => {
                        mutex.acquireSync({ timeout: 0 }).check()
                        mutex.releaseSync()
                    }
                    try {
                        refused ? assert.throws(sync, code(refused), said) : sync()
                    } catch (error) {
                        /*  An acquire was on its way to the server already, and has it.  */
                        assert.ok(error.code === code("TIMEOUT").code && waits.some(({ early }) => early), `${said}: ${error}`)
                    }
                } else if (refused) {
                    done.push(assert.rejects(mutex[call](), code(refused), said))
                } else if (call === "acquire") {
                    const wait = { early: state === "open", closed: false }
                    waits.push(wait)
                    done.push(mutex.acquire().then(async (hold) => {
                        if (wait.closed) {
                            return assert.ok(wait.early, said)
                        }
                        hold.check()
                        await mutex.release()
                        assert.throws(() => hold.check(), code("NOT_OWNER"), said)
                    }, (error) => assert.ok(wait.closed && error.code === code("CLOSED").code, `${said}: ${error}`)))
                } else {
                    done.push(mutex[call]())
                }
                if (!refused) {
                    if (call === "close") {
                        waits.forEach((wait) => { wait.closed = true })
                    }
                    state = call === "close" ? "closed" : call === "acquireSync" || state === "open" ? "open" : "opening"
                }
            }
            await Promise.all(done)
            if (state !== "closed") {
                await mutex.acquire()
                await mutex.close()
            }
            /*  What a close gave up on its way to the server is given back a moment later.  */
            const next = new Mutex(name)
            assert.strictEqual((await next.acquire({ timeout: 30000 })).abandoned, false, said)
            await next.close()
        }
    })

    await t.test("a close ends the acquires that wait for an opening, and not those that come after it", { timeout: 60000 }, async () => {
        const [before, socket] = server.split("@")
        const gate = `${socket}-silent`
        const accepted = []
        const silent = net.createServer((client) => accepted.push(client.on("error", () => {}))).listen(gate)
        await once(silent, "listening")
        const mutex = new Mutex(`${before}@${gate}?id=silent&connect_timeout=50s`)
        const opening = mutex.open()
        await once(silent, "connection")
        const waits = [mutex.acquire(), mutex.tryAcquire(), mutex.status(), mutex.execute(() => {}, { timeout: 50000 })]
        const ended = waits.map((wait) => assert.rejects(wait, { ...code("CLOSED"), message: /not opened/ }))
        await Promise.all([...ended, opening, mutex.close()])
        fs.unlinkSync(gate)
        fs.symlinkSync(socket, gate)
        const reopened = mutex.open()
        const waiting = mutex.acquire()
        /*  Now both openings come to something.  */
        accepted.forEach((client) => client.destroy())
        await reopened
        const hold = await waiting
        await new Promise((resolve) => silent.close(resolve))
        hold.check()
        await mutex.release()
        await mutex.close()
    })

    await t.test("a server that is not there is UNAVAILABLE, and tried again", async () => {
        const mutex = new Mutex("rpm+redis+unix:///nowhere/socket?id=x")
        await assert.rejects(mutex.acquire(), code("UNAVAILABLE"))
        await assert.rejects(mutex.open(), code("UNAVAILABLE"))
        await assert.rejects(mutex.release(), code("CLOSED"))
    })

    await t.test("a timeout or an abort does not wait for an opening, which goes on", { timeout: 60000 }, async () => {
        const [before, socket] = server.split("@")
        const gate = `${socket}-gate`
        const accepted = []
        const silent = net.createServer((client) => accepted.push(client.on("error", () => {}))).listen(gate)
        await once(silent, "listening")
        const mutex = new Mutex(`${before}@${gate}?id=gate&connect_timeout=20s`)
        const begun = performance.now()
        const late = { ...code("TIMEOUT"), message: /not acquired within 0\.100 s: it is not opened yet/ }
        await Promise.all([
            assert.rejects(mutex.acquire({ timeout: 100 }), late),
            assert.rejects(mutex.execute(() => {}, { timeout: 100 }), late),
            assert.rejects(mutex.acquire({ timeout: 1e9, signal: AbortSignal.timeout(100) }), { name: "TimeoutError" })
        ])
        const waiting = mutex.acquire({ timeout: 20000 })
        assert.ok(performance.now() - begun < 10000)
        assert.strictEqual(accepted.length, 1, "it was not begun anew")
        fs.unlinkSync(gate)
        fs.symlinkSync(socket, gate)
        accepted[0].destroy()
        await (await waiting).release()
        await mutex.close()
        await new Promise((resolve) => silent.close(resolve))
    })

    await t.test("n5 aborts leave the line and nothing held", { timeout: 60000 }, async () => {
        const mutex = new Mutex(url())
        for (let round = 0; round < 200; round++) {
            const hold = await mutex.acquire()
            const controller = new AbortController()
            const waiting = mutex.acquire({ signal: controller.signal })
            if (round % 2 === 0) {
                await new Promise(setImmediate)
            }
            const released = round % 4 < 2 ? hold.release() : null
            controller.abort("enough")
            await waiting.then((late) => late.release(), (reason) => assert.strictEqual(reason, "enough"))
            await (released ?? hold.release())
        }
        await (await mutex.acquire({ timeout: 10000 })).release()
        await mutex.close()
    })

    await t.test("an abort right behind the opening ends the acquire", { timeout: 20000 }, async () => {
        const mutex = new Mutex(url())
        const controller = new AbortController()
        const opened = mutex.open()
        const waiting = mutex.acquire({ signal: controller.signal })
        opened.then(() => controller.abort("enough"))
        await assert.rejects(waiting, (reason) => reason === "enough")
        assert.strictEqual((await mutex.status()).state, "free")
        await mutex.close()
    })

    await t.test("a lost hold aborts its signal", { timeout: 20000 }, async () => {
        const mutex = new Mutex(url("&ttl=1s"))
        const hold = await mutex.acquire()
        const alive = setInterval(() => {}, 1000)
        const lost = new Promise((resolve) => hold.signal.addEventListener("abort", resolve))
        await mutex.breakLock()
        await lost
        clearInterval(alive)
        assert.strictEqual(hold.signal.reason.code, "ERR_IPCMUTEX_LOST")
        await assert.rejects(hold.release(), code("LOST"))
    })

    await t.test("n6 the lease is renewed while the event loop is blocked", async () => {
        const name = url("&ttl=2s")
        const hold = await new Mutex(name).acquire()
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4500)
        hold.check()
        await hold.release()
    })

    for (const end of ["", "process.exit(0)", "process.exitCode = 0; throw 1"]) {
        await t.test(`n1 a process that ends by "${end}" releases what it holds`, async () => {
            const name = url("&ttl=1h")
            const { signal, err } = await run(`
                const Mutex = require(process.env.IPCMUTEX_TEST)
                const mutex = new Mutex(${JSON.stringify(name)})
                mutex.acquire().then((hold) => setImmediate(() => { ${end} }))`)
            assert.strictEqual(signal, null, err)
            await (await new Mutex(name).acquire({ timeout: 10000 })).release()
        })
    }

    await t.test("n2 a mutex and a hold do not keep the process alive", async () => {
        const { code: status, err } = await run(`
            const Mutex = require(process.env.IPCMUTEX_TEST)
            new Mutex(${JSON.stringify(url())}).acquire().then((hold) => hold.signal)`)
        assert.strictEqual(status, 0, err)
    })
})
