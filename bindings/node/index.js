"use strict"

const net = require("node:net")
/*  Not the global ones, which a test may have replaced for a while.  */
const { clearTimeout, setImmediate, setTimeout } = require("node:timers")

const addon = require("./native.js").load()

const CODES = addon.codes()
const PRIVATE = Symbol("ipcmutex")

function failure (code, message) {
    return Object.assign(new Error(message), { code })
}

/*  What takes time, in this environment: id -> what to call with its outcome.  */
const pending = new Map()
let lastId = 0

const take = () => {
    for (const { id, code, message, value } of events.take()) {
        if (id < 0) {
            watch(-1 - id, value)
        } else {
            pending.get(id)?.(code === undefined ? null : failure(code, message), value)
        }
    }
}

const events = new addon.Events(take)

/*  A connection to a server that this event loop reads; the addon writes. By itself it keeps nothing alive.  */
function watch (number, fd) {
    const heard = (length, buffer) => {
        events.heard(number, buffer, length)
        take()
        return true
    }
    const buffer = Buffer.allocUnsafe(1024)
    const socket = new net.Socket({ fd, readable: true, writable: false, onread: { buffer, callback: heard } })
    socket.unref()
    socket.on("error", () => {})
    socket.once("close", () => heard(0, buffer))
    events.watching(number)
}

/*  How many promises are open: while there is one, the process stays alive.  */
let open = 0

function begin (id, settle) {
    pending.set(id, settle)
    if (open++ === 0) {
        events.keepAlive(true)
    }
}

function end (id) {
    pending.delete(id)
    if (--open === 0) {
        events.keepAlive(false)
    }
}

/*  What `start(id)` comes to: it is there at once, or one of the library's threads tells it later.  */
function later (start) {
    const id = ++lastId
    const value = start(id) ?? null
    if (value !== null) {
        return value
    }
    return new Promise((resolve, reject) => {
        begin(id, (error, value) => {
            end(id)
            error === null ? resolve(value) : reject(error)
        })
    })
}

/*  After so many milliseconds of acquisitions that were settled at once the event loop has its turn: else a program that does nothing else would
    stop it. Counted since it last turned: who seldom takes a lock never waits for that.  */
const AT_ONCE_MS = 5
let since = null
/*  Who lets it have its turn. All go on at once, in their order, and before anybody who comes later.  */
let turning = []

/*  Whether the event loop is to have its turn first.  */
function isTurn () {
    const now = performance.now()
    if (since === null) {
        since = now
        setImmediate(() => {
            since = null
            const resolves = turning
            turning = []
            for (const resolve of resolves) {
                resolve()
            }
        })
    }
    return now - since >= AT_ONCE_MS
}

/*  Its turn. Nothing may be held meanwhile: it may last, and others would wait for all of it.  */
const turn = () => new Promise((resolve) => { turning.push(resolve) })

/*  Why `signal` has aborted. An old library's does not say.  */
function reasonOf (signal) {
    return signal.reason === undefined ? new DOMException("This operation was aborted", "AbortError") : signal.reason
}

/*  Waits in line; `signal` ends it.  */
function wait (native, timeout, signal) {
    const id = ++lastId
    const taken = events.acquire(id, native.id, timeout)
    if (taken !== null) {
        return taken
    }
    return new Promise((resolve, reject) => {
        const finish = () => {
            end(id)
            signal?.removeEventListener("abort", onAbort)
        }
        const onAbort = () => {
            /*  If it has an outcome already, that one comes, and the signal changes nothing.  */
            if (events.cancel(id)) {
                finish()
                reject(reasonOf(signal))
            }
        }
        begin(id, (error, taken) => {
            finish()
            error === null ? resolve(taken) : reject(error)
        })
        signal?.addEventListener("abort", onAbort, { once: true })
    })
}

/*  As long as a timer can wait.  */
const LONGEST_MS = 2 ** 31 - 1

/*  `promise`, or the reason of `signal`, or after `timeout` milliseconds what `late` makes, if that comes first. A try waits for it.  */
function unlessEnded (promise, timeout, signal, late) {
    const timed = timeout > 0 && timeout <= LONGEST_MS
    if (signal === undefined && !timed) {
        return promise
    }
    return new Promise((resolve, reject) => {
        const onAbort = () => reject(reasonOf(signal))
        signal?.addEventListener("abort", onAbort, { once: true })
        const timer = timed ? setTimeout(() => reject(late()), timeout) : undefined
        promise.then(resolve, reject).finally(() => {
            clearTimeout(timer)
            signal?.removeEventListener("abort", onAbort)
        })
    })
}

function checked (operation, options) {
    if (options === undefined || options === null) {
        return { timeout: Infinity, signal: undefined }
    }
    if (typeof options !== "object") {
        throw failure(CODES.INVALID, `${operation}: the options are an object, not a ${typeof options}`)
    }
    const { timeout = Infinity, signal } = options
    if (typeof timeout !== "number") {
        throw failure(CODES.INVALID, `${operation}: a timeout is a number of milliseconds, not a ${typeof timeout}`)
    }
    addon.checkTimeout(timeout)
    if (signal === undefined || signal === null) {
        return { timeout, signal: undefined }
    }
    if (typeof signal.aborted !== "boolean" || typeof signal.addEventListener !== "function") {
        throw failure(CODES.INVALID, `${operation}: the signal is not an AbortSignal`)
    }
    return { timeout, signal }
}

/*  A signal's own throwIfAborted() is younger than what else it can, and not every library's has it.  */
function throwIfAborted (signal) {
    if (signal?.aborted) {
        throw reasonOf(signal)
    }
}

/*  A hold that nobody can release any more is released, and said so.  */
const lostSight = new FinalizationRegistry(async ({ id, remote, shown, watch }) => {
    pending.delete(watch)
    if (addon.isHeld(id)) {
        process.emitWarning(`a hold of ${shown} was garbage-collected without a release; it is released now`,
            { type: "ResourceWarning", code: "IPCMUTEX_UNRELEASED" })
        try {
            remote ? await later((call) => events.release(call, id)) : addon.release(id)
        } catch (error) {
            process.emitWarning(error)
        }
    }
    addon.forget(id)
})

/*  An open lock: its number in the addon. Its Mutex and its holds have it; when all of them are gone, it is.  */
class Opened {
    constructor (id, remote, shown) {
        this.id = id
        this.remote = remote
        /*  What its holds that are watched wait for, and their signals: who listens to one often has the hold in sight, so nothing
            else may have it.  */
        this.watched = new Map()
        /*  `watch` is the last of them.  */
        this.left = { id, remote, shown, watch: 0 }
        lostSight.register(this, this.left)
    }
}

let unwatch
let lose

class Hold {
    #native
    /*  The token; in an object if the previous hold was abandoned.  */
    #taken
    #controller = null
    #watch = 0
    #released = false

    static {
        unwatch = (hold) => {
            if (hold.#watch !== 0) {
                pending.delete(hold.#watch)
                hold.#native.watched.delete(hold.#watch)
            }
        }
        /*  Its release failed. That tells of a loss, too, and nobody watches any more.  */
        lose = (hold, error) => {
            if (error.code === CODES.LOST) {
                hold.#controller ??= new AbortController()
                hold.#controller.abort(error)
            }
        }
    }

    constructor (key, native, taken) {
        if (key !== PRIVATE) {
            throw failure(CODES.INVALID, "a Hold comes from Mutex.acquire()")
        }
        this.#native = native
        this.#taken = taken
    }

    get token () {
        return typeof this.#taken === "bigint" ? this.#taken : this.#taken.token
    }

    get abandoned () {
        return typeof this.#taken !== "bigint"
    }

    /*  How long it lasts for certain without a renewal; null if it has no lease.  */
    get validMs () {
        return addon.validMs(this.#native.id, this.token) ?? null
    }

    /*  Aborts, with the error, when the hold is lost; never when it is released.  */
    get signal () {
        if (this.#controller === null) {
            const { id, left, watched } = this.#native
            const controller = this.#controller = new AbortController()
            if (addon.isLive(id, this.token)) {
                /*  It keeps nothing alive: no open promise is counted.  */
                const watch = this.#watch = left.watch = ++lastId
                const inSight = new WeakRef(watched)
                watched.set(watch, controller)
                pending.set(watch, (error) => {
                    pending.delete(watch)
                    const watched = inSight.deref()
                    const controller = watched?.get(watch)
                    watched?.delete(watch)
                    controller?.abort(error)
                })
                events.onLost(watch, id, this.token)
            }
        }
        /*  It may be lost in this turn of the event loop, and told in a later one.  */
        if (!this.#released && !this.#controller.signal.aborted) {
            try {
                this.check()
            } catch (error) {
                lose(this, error)
            }
        }
        return this.#controller.signal
    }

    check () {
        addon.check(this.#native.id, this.token)
    }

    async extend (ttlMs) {
        if (ttlMs !== undefined && typeof ttlMs !== "number") {
            throw failure(CODES.INVALID, `extend: a lease is a number of milliseconds, not a ${typeof ttlMs}`)
        }
        await later((call) => events.extend(call, this.#native.id, this.token, ttlMs))
    }

    async release () {
        if (this.#released) {
            return
        }
        this.#released = true
        unwatch(this)
        try {
            if (this.#native.remote) {
                await later((call) => events.releaseHold(call, this.#native.id, this.token))
            } else {
                addon.releaseHold(this.#native.id, this.token)
            }
        } catch (error) {
            lose(this, error)
            throw error
        }
    }

    async [Symbol.asyncDispose] () {
        await this.release()
    }
}

class Mutex {
    #url
    #shown
    #remote
    #native = null
    #opening = null
    #closed = false
    /*  The current one.  */
    #hold = null

    constructor (url) {
        if (typeof url !== "string") {
            throw failure(CODES.INVALID, `open: a URL is a string, not a ${typeof url}`)
        }
        const described = addon.describe(url)
        this.#url = described.url
        this.#shown = described.shown
        this.#remote = described.remote
    }

    /*  The URL, its secret shown as ***.  */
    get url () {
        return this.#shown
    }

    async open () {
        if (this.#native !== null || this.#opening !== null) {
            throw failure(CODES.INVALID, `open ${this.#shown}: already opened; close it first`)
        }
        this.#closed = false
        await this.#open()
    }

    async close () {
        const native = this.#native
        if (native === null && this.#opening === null) {
            throw this.#notOpened("close")
        }
        this.#ended()
        this.#settle(null)
        this.#closed = true
        if (native === null) {
            return
        }
        if (this.#remote) {
            await later((call) => events.close(call, native.id))
        } else {
            addon.close(native.id)
        }
    }

    acquire (options) {
        return this.#acquire("acquire", options)
    }

    async tryAcquire () {
        const native = await this.#opened("acquire")
        if (isTurn()) {
            await turn()
            this.#stillOpened("acquire", native)
        }
        if (!this.#remote) {
            return this.#adopt(native, addon.tryAcquire(native.id))
        }
        try {
            return this.#adopt(native, await wait(native, 0, undefined))
        } catch (error) {
            if (error.code === CODES.TIMEOUT) {
                return null
            }
            throw error
        }
    }

    async release () {
        const native = this.#used("release")
        const hold = this.#ended()
        try {
            if (this.#remote) {
                await later((call) => events.release(call, native.id))
            } else {
                addon.release(native.id)
            }
        } catch (error) {
            hold === null || lose(hold, error)
            throw error
        }
    }

    async execute (fn, options) {
        if (typeof fn !== "function") {
            throw failure(CODES.INVALID, `execute: the first argument is a function, not a ${typeof fn}`)
        }
        const hold = await this.#acquire("execute", options)
        let value
        try {
            value = await fn(hold)
        } catch (error) {
            try {
                await hold.release()
            } catch (loss) {
                if (loss.code === CODES.LOST) {
                    /*  It may be why the function failed.  */
                    loss.cause = error
                    throw loss
                }
                process.emitWarning(loss)
            }
            throw error
        }
        try {
            await hold.release()
        } catch (loss) {
            loss.result = value
            throw loss
        }
        return value
    }

    async status () {
        const native = await this.#opened("status")
        if (isTurn()) {
            /*  Who asks until it is free would keep the event loop from that.  */
            await turn()
            this.#stillOpened("status", native)
        }
        return this.#remote ? await later((call) => events.status(call, native.id)) : addon.status(native.id)
    }

    async breakLock () {
        const native = await this.#opened("break")
        return this.#remote ? await later((call) => events.breakLock(call, native.id)) : addon.breakLock(native.id)
    }

    /*  Blocks this thread, its event loop included: a holder in this very thread can never release meanwhile.  */
    acquireSync (options) {
        const { timeout } = checked("acquire", options)
        if (this.#closed) {
            throw this.#notOpened("acquire")
        }
        const native = this.#native ?? this.#settle(this.#keep(addon.openSync(this.#url)))
        const taken = this.#remote ? null : addon.tryAcquire(native.id)
        return this.#adopt(native, taken ?? addon.acquireSync(native.id, timeout, () => {}))
    }

    releaseSync () {
        const native = this.#used("release")
        const hold = this.#ended()
        try {
            addon.release(native.id)
        } catch (error) {
            hold === null || lose(hold, error)
            throw error
        }
    }

    async #acquire (operation, options) {
        let { timeout, signal } = checked(operation, options)
        throwIfAborted(signal)
        let native = this.#native
        if (native === null) {
            const since = performance.now()
            native = this.#opened("acquire")
            if (this.#remote) {
                native = await unlessEnded(native, timeout, signal, () => this.#late(timeout))
                /*  It may have aborted since the opening ended, when nobody listened.  */
                throwIfAborted(signal)
                timeout = Math.max(0, timeout - (performance.now() - since))
            }
        }
        if (isTurn()) {
            /*  No part of the timeout: a wait that is shorter would become a try, and never get a busy lock.  */
            await turn()
            throwIfAborted(signal)
            this.#stillOpened("acquire", native)
        }
        let taken = this.#remote ? null : addon.tryAcquire(native.id)
        taken ??= wait(native, timeout, signal)
        return this.#adopt(native, taken instanceof Promise ? await taken : taken)
    }

    #adopt (native, taken) {
        if (taken === null) {
            return null
        }
        return this.#hold = new Hold(PRIVATE, native, taken)
    }

    /*  The current hold, of which nobody is told any more that it is lost.  */
    #ended () {
        const hold = this.#hold
        if (hold !== null) {
            unwatch(hold)
            this.#hold = null
        }
        return hold
    }

    #keep (id) {
        return new Opened(id, this.#remote, this.#shown)
    }

    /*  The open native mutex; for a server a promise of it.  */
    #opened (operation) {
        if (this.#native !== null) {
            return this.#remote ? Promise.resolve(this.#native) : this.#native
        }
        if (this.#closed) {
            const error = this.#notOpened(operation)
            if (this.#remote) {
                return Promise.reject(error)
            }
            throw error
        }
        const native = this.#open()
        if (!this.#remote) {
            return native
        }
        return native.then((native) => {
            if (native === null || native !== this.#native) {
                throw this.#notOpened(operation)
            }
            return native
        })
    }

    /*  Opens it, or waits for what does. For a server a promise, of null if it was closed meanwhile.  */
    #open () {
        if (!this.#remote) {
            return this.#settle(this.#keep(addon.openSync(this.#url)))
        }
        this.#opening ??= this.#begin()
        return this.#opening.native
    }

    #begin () {
        const opening = {}
        opening.native = new Promise((resolve, reject) => { Object.assign(opening, { resolve, reject }) })
        later((call) => events.open(call, this.#url)).then((id) => {
            if (this.#opening === opening) {
                this.#settle(this.#keep(id))
            } else {
                addon.forget(id) // too late, and nobody has seen it
            }
        }, (error) => {
            if (this.#opening === opening) {
                this.#opening = null
                opening.reject(error)
            }
        })
        return opening
    }

    /*  It is open, or with null closed: who waits for an opening is told, and what that still comes to is of no use.  */
    #settle (native) {
        this.#opening?.resolve(native)
        this.#opening = null
        return this.#native = native
    }

    #used (operation) {
        if (this.#native !== null) {
            return this.#native
        }
        if (this.#opening === null) {
            throw this.#notOpened(operation)
        }
        throw failure(CODES.NOT_OWNER, `${operation} ${this.#shown}: still not acquired; acquire it first`)
    }

    /*  The operation was under way when it was closed.  */
    #stillOpened (operation, native) {
        if (native !== this.#native) {
            throw this.#notOpened(operation)
        }
    }

    #late (timeout) {
        const seconds = (timeout / 1000).toFixed(3)
        return failure(CODES.TIMEOUT, `acquire ${this.#shown}: not acquired within ${seconds} s: it is not opened yet`)
    }

    #notOpened (operation) {
        return failure(CODES.CLOSED, `${operation} ${this.#shown}: still not opened`)
    }
}

module.exports = Mutex
module.exports.Mutex = Mutex
module.exports.Hold = Hold
module.exports.default = Mutex
Object.defineProperty(module.exports, "__esModule", { value: true })
