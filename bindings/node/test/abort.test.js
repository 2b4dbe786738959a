"use strict"

const assert = require("node:assert")
const test = require("node:test")

const Mutex = require("..")
const { name } = require("./helper.js")

test("n5 a signal that has aborted rejects at once with its own reason", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const reason = new Error("never mind")
    await assert.rejects(mutex.acquire({ signal: AbortSignal.abort(reason) }), (error) => error === reason)
    assert.strictEqual((await mutex.status()).state, "free")
})

test("n5 a signal of a library needs no throwIfAborted", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const signal = Object.assign(new EventTarget(), { aborted: false, reason: "enough" })
    const hold = await mutex.acquire({ signal })
    const waiting = mutex.acquire({ signal })
    signal.aborted = true
    signal.dispatchEvent(new Event("abort"))
    await assert.rejects(waiting, (reason) => reason === "enough")
    await assert.rejects(mutex.acquire({ signal }), (reason) => reason === "enough")
    await hold.release()
})

test("n5 a signal of a library needs no reason", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const hold = await mutex.acquire()
    const signal = Object.assign(new EventTarget(), { aborted: false })
    const waiting = mutex.acquire({ signal })
    signal.aborted = true
    signal.dispatchEvent(new Event("abort"))
    await assert.rejects(waiting, { name: "AbortError" })
    await assert.rejects(mutex.acquire({ signal }), { name: "AbortError" })
    await hold.release()
})

test("n5 an abort ends the wait with signal.reason, and leaves the line", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const hold = await mutex.acquire()
    await new Promise(setImmediate) // the first acquisition of a turn is in line at once
    const controller = new AbortController()
    let heard = false
    controller.signal.onabort = () => { heard = true }
    const waiting = mutex.acquire({ signal: controller.signal })
    assert.strictEqual((await mutex.status()).waiters, 1)
    controller.abort("enough")
    await assert.rejects(waiting, (reason) => reason === "enough")
    assert.ok(heard, "the user's own handler stays")
    assert.strictEqual((await mutex.status()).waiters, 0)
    await hold.release()
})

test("n5 an abort after the grant changes nothing", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const controller = new AbortController()
    const hold = await mutex.acquire({ signal: controller.signal })
    controller.abort()
    hold.check()
    await hold.release()
})

test("n5 no listener stays behind", async () => {
    const mutex = new Mutex(`spm:${name()}`)
    const { signal } = new AbortController()
    let listening = 0
    const { addEventListener, removeEventListener } = signal
    signal.addEventListener = (...args) => { listening++; addEventListener.apply(signal, args) }
    signal.removeEventListener = (...args) => { listening--; removeEventListener.apply(signal, args) }
    const hold = await mutex.acquire()
    const waits = []
    for (const timeout of [Infinity, 10]) {
        await new Promise(setImmediate) // the first acquisition of a turn is in line at once
        waits.push(mutex.acquire({ signal, timeout }))
    }
    assert.strictEqual(listening, 2)
    await assert.rejects(waits[1])
    await hold.release()
    await (await waits[0]).release()
    assert.strictEqual(listening, 0)
})

test("n5 aborts that race with grants leave nothing held", { timeout: 120000 }, async () => {
    const mutex = new Mutex(`spm:${name()}`)
    let granted = 0
    let aborted = 0
    for (let round = 0; round < 10000; round++) {
        const hold = await mutex.acquire()
        const controller = new AbortController()
        const waiting = mutex.acquire({ signal: controller.signal }).then(
            (late) => { granted++; return late.release() },
            (reason) => { aborted++; assert.strictEqual(reason, controller.signal.reason) }
        )
        /*  The grant is on its way, or not yet, when the signal aborts.  */
        if (round % 3 === 0) {
            controller.abort()
            await hold.release()
        } else {
            const released = hold.release()
            if (round % 3 === 1) {
                await new Promise(setImmediate)
            }
            controller.abort()
            await released
        }
        await waiting
    }
    assert.strictEqual(granted + aborted, 10000)
    assert.ok(granted > 0 && aborted > 0)
    const status = await mutex.status()
    assert.strictEqual(status.state, "free")
    assert.strictEqual(status.waiters, 0)
})
