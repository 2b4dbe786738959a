/// <reference lib="esnext.disposable" />

declare class Hold {
    private constructor ()
    /** The fencing token: larger than that of every earlier hold of the name. */
    readonly token: bigint
    /** Whether the previous hold ended without a release. */
    readonly abandoned: boolean
    /** How many milliseconds it lasts for certain without a renewal; null if it has no lease. */
    readonly validMs: number | null
    /** Aborts, with the error, when the hold is lost; never when it is released. */
    readonly signal: AbortSignal
    /** Throws ERR_IPCMUTEX_LOST if it was lost, ERR_IPCMUTEX_NOT_OWNER if it has ended. No I/O. */
    check (): void
    /** Renews the lease to `ttlMs`, or to the URL's. ERR_IPCMUTEX_UNSUPPORTED where there is no lease. */
    extend (ttlMs?: number): Promise<void>
    /** Ends this hold, and no other. ERR_IPCMUTEX_LOST if it was lost. A second call does nothing. */
    release (): Promise<void>
    /** `await using` releases. */
    [Symbol.asyncDispose] (): Promise<void>
}

/**
 * A lock, named by a URL, that excludes threads, processes or hosts.
 *
 *     spm:<id>                                        mpm:<id>  mpm:/path  mpm:./path  file:/path
 *     rpm+redis://[user:secret@]host[:port][/<id>]    rpm+rediss://... (TLS)
 *     rpm+redis+unix:///path/redis.sock?id=<id>       rpm+redis+sentinel://h1,h2/<master>/<id>
 *     rpm+redis+cluster://h1,h2/<id>                  rpm+redlock://h1,h2,h3/<id>
 *
 *     All: ?fair=strict|eventual, label=<text>. mpm: mode=0660, remotefs=1. Redis: ttl=10s, renew=off, db=,
 *     prefix=, redis_key=, replicas=, connect_timeout=, policy=any, protocol=2|3, tls=on, ca= crt= key=; of
 *     Sentinels sentinel_user= sentinel_password=. An id is 1 to 200 bytes of A-Z a-z 0-9 . _ - (Redis: also
 *     / and :), but no .. and not . alone. Everything may be percent-encoded.
 */
declare class Mutex {
    /** Checks the URL; nothing is opened yet. Throws ERR_IPCMUTEX_INVALID. */
    constructor (url: string)
    /** The URL, its secret shown as ***. */
    readonly url: string
    /**
     * Opens it, which the first `acquire` does as well. ERR_IPCMUTEX_INVALID if it is open already. If it is closed meanwhile,
     * it resolves, and the mutex is closed.
     */
    open (): Promise<void>
    /** Releases a hold taken through it and ends its waits with ERR_IPCMUTEX_CLOSED. */
    close (): Promise<void>
    /** Waits in line; opens the mutex if that was not done. ERR_IPCMUTEX_TIMEOUT, or the signal's reason. */
    acquire (options?: Mutex.AcquireOptions): Promise<Hold>
    /** A hold, or null if somebody holds the lock. */
    tryAcquire (): Promise<Hold | null>
    /** Ends the hold that is current through this object, however it was taken. ERR_IPCMUTEX_NOT_OWNER if there is none,
     *  ERR_IPCMUTEX_LOST if it was lost. */
    release (): Promise<void>
    /** Runs `fn` holding the lock and always releases. Rejects with what `fn` throws, or with why the release failed, and then
     *  `result` is what `fn` gave. If `fn` throws and the hold was lost, it rejects with ERR_IPCMUTEX_LOST, and `cause` is what `fn` threw. */
    execute<T> (fn: (hold: Hold) => T | PromiseLike<T>, options?: Mutex.AcquireOptions): Promise<T>
    /** What anybody can see of the lock, whoever holds it. */
    status (): Promise<Mutex.Status>
    /** Takes the lock from whoever holds it; whether somebody did. That hold is lost, its token stale. */
    breakLock (): Promise<boolean>
    /** Blocks this thread, its event loop included. ERR_IPCMUTEX_TIMEOUT. */
    acquireSync (options?: { timeout?: number }): Hold
    /** As `release`, and blocks. */
    releaseSync (): void
}

declare namespace Mutex {
    export interface AcquireOptions {
        /** Milliseconds; 0 tries, absent or Infinity waits for ever. */
        timeout?: number
        /** Ends the wait, which then rejects with `signal.reason`, or with an AbortError if it has none. */
        signal?: AbortSignal | null
    }
    export interface Status {
        state: "free" | "held" | "abandoned"
        /** The token of the hold, or of the last one; 0n if that is not known. */
        token: bigint
        waiters: number
        /** Who holds it, for display only. */
        ownerPid?: number
        ownerHost?: string
        ownerLabel?: string
        heldMs?: number
        /** Acquisitions, with or without a wait; of a Redis lock through this handle, as all numbers that follow. */
        acquisitions: number
        /** Those that had to wait. */
        contended: number
        /** Waits that ended without the lock. */
        gaveUp: number
        /** Holds that ended without a release. */
        losses: number
        /** Slow looks that found what nobody had told. */
        rechecks: number
        /** Acquisitions that had to wait, by how long: up to 0.1 ms, 1 ms, 10 ms, 100 ms, 1 s, 10 s, and longer. */
        waits: number[]
    }
    /** Why it failed, as in every language; `docs/TROUBLESHOOTING.md` says what to do. */
    export type Code =
        | "ERR_IPCMUTEX_TIMEOUT"
        | "ERR_IPCMUTEX_CANCELED"
        | "ERR_IPCMUTEX_LOST"
        | "ERR_IPCMUTEX_NOT_OWNER"
        | "ERR_IPCMUTEX_CLOSED"
        | "ERR_IPCMUTEX_FORKED"
        | "ERR_IPCMUTEX_INVALID"
        | "ERR_IPCMUTEX_PERMISSION"
        | "ERR_IPCMUTEX_UNSAFE"
        | "ERR_IPCMUTEX_NO_SPACE"
        | "ERR_IPCMUTEX_RESOURCE"
        | "ERR_IPCMUTEX_IO"
        | "ERR_IPCMUTEX_UNAVAILABLE"
        | "ERR_IPCMUTEX_AUTH"
        | "ERR_IPCMUTEX_CONFIG"
        | "ERR_IPCMUTEX_PROTOCOL"
        | "ERR_IPCMUTEX_UNSUPPORTED"
        | "ERR_IPCMUTEX_PANIC"
    /** What every failure of this package has. */
    export interface MutexError extends Error {
        code: Code
        /** From `execute` alone, when its hold was lost: what the function threw, which the loss may be the reason of. */
        cause?: unknown
        /** From `execute` alone, when the release failed: what the function gave. */
        result?: unknown
    }
    export { Hold, Mutex, Mutex as default }
}

export = Mutex
