"use strict"

const assert = require("node:assert")
const fs = require("node:fs")
const path = require("node:path")
const test = require("node:test")

const Mutex = require("..")
const { folder, name } = require("./helper.js")

const code = (word) => ({ code: `ERR_IPCMUTEX_${word}` })

test("the module is the class, by every road", async () => {
    assert.strictEqual(Mutex.Mutex, Mutex)
    assert.strictEqual(Mutex.default, Mutex)
    const module = await import("../index.mjs")
    assert.strictEqual(module.default, Mutex)
    assert.strictEqual(module.Mutex, Mutex)
    assert.strictEqual(module.Hold, Mutex.Hold)
})

test("ipc-mutex's four calls give promises of undefined, but for the hold", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    assert.strictEqual(await mutex.open(), undefined)
    assert.ok(await mutex.acquire() instanceof Mutex.Hold)
    assert.strictEqual(await mutex.release(), undefined)
    assert.strictEqual(await mutex.close(), undefined)
})

test("misuse has a code and ipc-mutex's words", async () => {
    assert.throws(() => new Mutex("foo:bar"), code("INVALID"))
    assert.throws(() => new Mutex(), code("INVALID"))
    assert.throws(() => new Mutex.Hold(), code("INVALID"))
    const mutex = new Mutex(`spm:${name()}`)
    await assert.rejects(mutex.release(), { ...code("CLOSED"), message: /still not opened/ })
    await assert.rejects(mutex.close(), { ...code("CLOSED"), message: /still not opened/ })
    await mutex.open()
    await assert.rejects(mutex.open(), { ...code("INVALID"), message: /already opened/ })
    await assert.rejects(mutex.release(), { ...code("NOT_OWNER"), message: /still not acquired/ })
    await mutex.close()
    await assert.rejects(mutex.acquire(), { ...code("CLOSED"), message: /still not opened/ })
    assert.throws(() => mutex.acquireSync(), code("CLOSED"))
    await mutex.open()
    await mutex.acquire()
    await mutex.close()
})

test("bad options reject", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    for (const options of [7, { timeout: "1" }, { timeout: null }, { timeout: NaN }, { timeout: -1 }, { timeout: 1e300 }, { signal: {} }]) {
        await assert.rejects(mutex.acquire(options), code("INVALID"), String(options))
    }
    await assert.rejects(mutex.execute(), code("INVALID"))
    await (await mutex.acquire({ timeout: Infinity, signal: null })).release()
})

test("ten acquires on one object are served one after another", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const order = []
    let inside = 0
    await Promise.all([...Array(10).keys()].map(async (turn) => {
        await mutex.acquire()
        assert.strictEqual(++inside, 1)
        order.push(turn)
        await new Promise(setImmediate)
        inside--
        await mutex.release()
    }))
    assert.deepStrictEqual(order, [...Array(10).keys()])
})

test("the event loop has its turn while nothing is done but try, or take a free lock", { timeout: 60000 }, async () => {
    const [one, two] = [new Mutex(`spm:${name()}`), new Mutex(`mpm:${name()}`)]
    for (const mutex of [one, two]) {
        const hold = await mutex.acquire()
        let tried
        setTimeout(() => hold.release(), 20)
        const since = performance.now()
        while ((tried = await mutex.tryAcquire()) === null) {
            assert.ok(performance.now() - since < 30000)
        }
        setTimeout(() => tried.release(), 20)
        while ((await mutex.status()).state === "held") {
            assert.ok(performance.now() - since < 30000)
        }
        for (const take of ["acquire", "tryAcquire"]) {
            let turned = false
            setTimeout(() => { turned = true }, 20)
            const since = performance.now()
            while (!turned) {
                assert.ok(performance.now() - since < 30000)
                const hold = await mutex[take]()
                await hold.release()
            }
        }
    }
})

/*  So that the next acquisition of this turn of the event loop lets it have its turn first.  */
async function busy (mutex) {
    await new Promise(setImmediate)
    await (await mutex.acquire()).release()
    for (const end = performance.now() + 6; performance.now() < end;);
}

test("nothing is held while the event loop has its turn", { timeout: 60000 }, async () => {
    for (const url of [`spm:${name()}`, `mpm:${name()}`]) {
        const [one, two] = [new Mutex(url), new Mutex(url)]
        for (const take of ["acquire", "tryAcquire"]) {
            await busy(one)
            const taking = one[take]()
            await null // a tryAcquire takes after that
            two.acquireSync({ timeout: 1000 })
            two.releaseSync()
            await (await taking).release()
        }
        /*  Who comes when the event loop has had its turn is behind those who let it have it.  */
        const order = []
        const take = async (mutex, who) => {
            const hold = await mutex.acquire()
            order.push(who)
            await hold.release()
        }
        await busy(one)
        const last = new Promise((resolve) => setImmediate(() => resolve(take(one, 3))))
        await Promise.all([take(one, 1), take(two, 2), last])
        assert.deepStrictEqual(order, [1, 2, 3])
    }
})

test("a wait that is shorter than the event loop's turn is one", async () => {
    for (const url of [`spm:${name()}`, `mpm:${name()}`]) {
        const [before, mutex, other] = [new Mutex(`spm:${name()}`), new Mutex(url), new Mutex(url)]
        const hold = await other.acquire()
        await busy(before)
        const waiting = mutex.acquire({ timeout: 50 })
        for (const end = performance.now() + 100; performance.now() < end;);
        /*  When it has had its turn.  */
        setImmediate(() => hold.release())
        await (await waiting).release()
    }
})

test("whom the event loop's turn comes before hears of a close, an abort and a timeout meanwhile", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const other = new Mutex(mutex.url)
    const abort = new AbortController()
    await busy(mutex)
    let waiting = mutex.acquire({ signal: abort.signal })
    abort.abort("enough")
    await assert.rejects(waiting, (reason) => reason === "enough")

    await busy(mutex)
    waiting = mutex.acquire({ timeout: 1 })
    const hold = other.acquireSync()
    await assert.rejects(waiting, code("TIMEOUT"))
    await hold.release()

    for (const take of ["acquire", "tryAcquire", "status"]) {
        await busy(mutex)
        waiting = mutex[take]()
        const closing = mutex.close()
        await assert.rejects(waiting, code("CLOSED"))
        await closing
        await mutex.open()
        await busy(mutex)
        waiting = mutex[take]()
        await mutex.close()
        await mutex.open()
        await assert.rejects(waiting, code("CLOSED"))
    }
    assert.strictEqual((await mutex.status()).state, "free")
})

test("two objects of one URL exclude each other, and tokens rise", async () => {
    const url = `spm:${name()}`
    const [one, two] = [new Mutex(url), new Mutex(url)]
    const first = await one.acquire()
    assert.strictEqual(typeof first.token, "bigint")
    assert.strictEqual(await two.tryAcquire(), null)
    await assert.rejects(two.acquire({ timeout: 0 }), code("TIMEOUT"))
    await assert.rejects(two.acquire({ timeout: 20 }), { ...code("TIMEOUT"), message: new RegExp(`pid ${process.pid}`) })
    const waiting = two.acquire()
    await first.release()
    await first.release()
    const second = await waiting
    assert.ok(second.token > first.token)
    assert.throws(() => first.check(), code("NOT_OWNER"))
    second.check()
    const status = await one.status()
    assert.deepStrictEqual(Object.keys(status).sort(),
        ["acquisitions", "contended", "gaveUp", "heldMs", "losses", "ownerHost", "ownerLabel", "ownerPid", "rechecks",
            "state", "token", "waiters", "waits"])
    assert.deepStrictEqual([status.acquisitions, status.contended, status.gaveUp], [2, 1, 1])
    assert.strictEqual(status.waits.reduce((sum, waits) => sum + waits), 1)
    assert.strictEqual((await one.status()).token, second.token)
    await two.close()
    assert.strictEqual((await one.status()).state, "free")
})

test("close ends the waits of the object", async () => {
    const url = `spm:${name()}`
    const [one, two] = [new Mutex(url), new Mutex(url)]
    await one.acquire()
    const waiting = assert.rejects(two.acquire(), code("CLOSED"))
    await two.close()
    await waiting
})

test("execute gives the value, releases when the function throws, and rejects with the loss", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    assert.strictEqual(await mutex.execute(async (hold) => hold.abandoned), false)
    await assert.rejects(mutex.execute(() => { throw new RangeError("mine") }), RangeError)
    assert.strictEqual((await mutex.status()).state, "free")
    await assert.rejects(mutex.execute(() => mutex.breakLock()), { ...code("LOST"), result: true })
    await assert.rejects(mutex.execute(async () => {
        await mutex.breakLock()
        throw new RangeError("mine")
    }), (error) => error.code === "ERR_IPCMUTEX_LOST" && error.cause instanceof RangeError)
    assert.strictEqual((await mutex.acquire()).abandoned, true)
    await mutex.release()
})

test("a hold's signal aborts when it is lost, and not when it is released", { timeout: 10000 }, async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const hold = await mutex.acquire()
    const lost = new Promise((resolve) => hold.signal.addEventListener("abort", resolve))
    const alive = setInterval(() => {}, 1000) // a hold does not keep the process alive
    await mutex.breakLock()
    await lost
    clearInterval(alive)
    assert.strictEqual(hold.signal.reason.code, "ERR_IPCMUTEX_LOST")
    assert.throws(() => hold.check(), code("LOST"))
    await assert.rejects(hold.release(), code("LOST"))
    const next = await mutex.acquire()
    const { signal } = next
    await next.release()
    await mutex.execute(() => {})
    assert.strictEqual(signal.aborted, false)
    await assert.rejects(next.extend(1000), code("NOT_OWNER"))
    await assert.rejects(mutex.execute((hold) => hold.extend()), code("UNSUPPORTED"))
    await assert.rejects(mutex.execute((hold) => hold.extend("1s")), code("INVALID"))
})

test("a hold that is lost has a signal that aborted, whenever it is asked for", async () => {
    for (const url of [`spm:${name()}`, `mpm:${name()}`]) {
        const [mutex, other] = [new Mutex(url), new Mutex(url)]
        for (const before of [false, true]) {
            const hold = await mutex.acquire()
            const signal = before ? hold.signal : null
            assert.strictEqual(signal?.aborted ?? false, false)
            await other.breakLock()
            assert.throws(() => hold.signal.throwIfAborted(), code("LOST"))
            assert.strictEqual(signal?.aborted ?? true, true)
            await assert.rejects(hold.release(), code("LOST"))
        }
    }
})

test("a hold's signal aborts also when its release is what tells of the loss", async (t) => {
    const file = path.join(folder(t), "lock")
    const mutex = new Mutex(`mpm:${file}`)
    for (const by of ["hold", "mutex", "sync"]) {
        const hold = await mutex.acquire()
        const { signal } = hold
        fs.unlinkSync(file)
        if (by === "sync") {
            assert.throws(() => mutex.releaseSync(), code("LOST"))
        } else {
            await assert.rejects((by === "hold" ? hold : mutex).release(), code("LOST"))
        }
        assert.strictEqual(signal.aborted, true, by)
        assert.strictEqual(signal.reason.code, "ERR_IPCMUTEX_LOST")
    }
    const unwatched = await mutex.acquire()
    fs.unlinkSync(file)
    await assert.rejects(unwatched.release(), code("LOST"))
    assert.strictEqual(unwatched.signal.aborted, true)
})

test("a hold is disposable", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const hold = await mutex.acquire()
    await hold[Symbol.asyncDispose]()
    assert.strictEqual((await mutex.status()).state, "free")
})

test("the synchronous calls", async () => {
    const url = `spm:${name()}`
    const [one, two] = [new Mutex(url), new Mutex(url)]
    assert.ok(one.acquireSync() instanceof Mutex.Hold)
    assert.throws(() => two.acquireSync({ timeout: 20 }), code("TIMEOUT"))
    one.releaseSync()
    assert.throws(() => one.releaseSync(), code("NOT_OWNER"))
    two.acquireSync().release()
})

test("n9 a hold out of sight is released with a warning", { timeout: 10000, skip: !global.gc && "needs --expose-gc" }, async () => {
    const url = `spm:${name()}`
    const warned = new Promise((resolve) => process.on("warning", (warning) => {
        if (warning.message.includes(`${url} `)) {
            resolve(warning)
        }
    }))
    await (async () => { await new Mutex(url).acquire() })()
    const collect = setInterval(global.gc, 20)
    const warning = await warned
    clearInterval(collect)
    assert.strictEqual(warning.name, "ResourceWarning")
    await (await new Mutex(url).acquire()).release()
})

test("a hold out of sight but for who listens to its signal is released too", { timeout: 10000, skip: !global.gc && "needs --expose-gc" }, async () => {
    const url = `spm:${name()}`
    await (async () => {
        const hold = await new Mutex(url).acquire()
        hold.signal.addEventListener("abort", () => hold.release())
    })()
    const collect = setInterval(global.gc, 20)
    await (await new Mutex(url).acquire()).release()
    clearInterval(collect)
})

test("n9 a mutex that is in sight keeps its hold through collections", { skip: !global.gc && "needs --expose-gc" }, async () => {
    const mutex = new Mutex(`spm:${name()}`)
    await mutex.acquire()
    for (let round = 0; round < 10; round++) {
        global.gc()
        await new Promise(setImmediate)
    }
    await mutex.release()
})

test("n9 a hold in sight stays held when its mutex is out of sight", { skip: !global.gc && "needs --expose-gc" }, async () => {
    const url = `spm:${name()}`
    const hold = await (async () => await new Mutex(url).acquire())()
    for (let round = 0; round < 10; round++) {
        global.gc()
        await new Promise(setImmediate)
    }
    hold.check()
    const other = new Mutex(url)
    assert.strictEqual(await other.tryAcquire(), null)
    await hold.release()
    await (await other.acquire()).release()
})

test("n9 what is out of sight is gone from the addon too", { timeout: 20000, skip: !global.gc && "needs --expose-gc" }, async () => {
    const addon = require("../native.js").load()
    const url = `spm:${name()}`
    for (let round = 0; round < 1000; round++) {
        const mutex = new Mutex(url)
        await mutex.acquire()
        await (round % 2 === 0 ? mutex.release() : mutex.close())
    }
    /*  The numbers of what is gone are given again.  */
    for (let highest = Infinity; highest > 1100;) {
        global.gc()
        await new Promise(setImmediate)
        const numbers = Array.from({ length: 500 }, () => addon.openSync(url))
        highest = Math.max(...numbers)
        numbers.forEach(addon.forget)
    }
})

test("a hold knows what it was after its end, and never ends another", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const [first, token] = await mutex.acquire().then((hold) => [hold, hold.token])
    await mutex.release()
    assert.throws(() => first.check(), code("NOT_OWNER"))
    assert.deepStrictEqual([first.token, first.abandoned, first.validMs], [token, false, null])
    const second = await mutex.acquire()
    await assert.rejects(first.release(), code("NOT_OWNER"))
    second.check()
    await mutex.close()
    assert.throws(() => second.check(), code("NOT_OWNER"))
    await mutex.open()
    const third = await mutex.acquire()
    await assert.rejects(second.release(), code("NOT_OWNER"))
    third.check()
    await mutex.breakLock()
    const fourth = await mutex.acquire()
    assert.deepStrictEqual([fourth.abandoned, fourth.token > third.token], [true, true])
    await assert.rejects(third.release(), code("LOST"))
    fourth.check()
    await fourth.release()
})

test("n9 waits whose mutex is out of sight are settled, once", { skip: !global.gc && "needs --expose-gc" }, async () => {
    const url = `spm:${name()}`
    const holder = new Mutex(url)
    await holder.acquire()
    let settled = 0
    const waits = Array.from({ length: 50 }, () => new Mutex(url).acquire().then((hold) => {
        settled++
        return hold.release()
    }))
    for (let round = 0; round < 5; round++) {
        global.gc()
        await new Promise(setImmediate)
    }
    await holder.release()
    await Promise.all(waits)
    assert.strictEqual(settled, 50)
    assert.strictEqual((await holder.status()).waiters, 0)
})

test("n9 a token is a bigint, whole", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const hold = await mutex.acquire()
    assert.strictEqual(typeof hold.token, "bigint")
    assert.strictEqual((await mutex.status()).token, hold.token)
    await hold.release()
})

test("n7 a loss that nobody listens to throws nowhere; the release tells it", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const hold = await mutex.acquire()
    hold.signal // told, and nobody is there to hear
    await mutex.breakLock()
    while (!hold.signal.aborted) {
        await new Promise(setImmediate)
    }
    await assert.rejects(hold.release(), { code: "ERR_IPCMUTEX_LOST" })
})
