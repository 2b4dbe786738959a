// What a TypeScript program says, as an ES module.
import Mutex, { Hold } from "ipcmutex"
import type { AcquireOptions, MutexError, Status } from "ipcmutex"

async function main (): Promise<void> {
    const mutex = new Mutex("spm:typescript")
    const options: AcquireOptions = { timeout: 1000, signal: new AbortController().signal }
    {
        await using hold = await mutex.acquire(options)
        const token: bigint = hold.token
        const status: Status = await mutex.status()
        if (!(hold instanceof Hold) || status.state !== "held" || status.token !== token) {
            throw new Error("not held")
        }
        if (await mutex.tryAcquire() !== null) {
            throw new Error("held twice")
        }
    }
    const state: "free" | "held" | "abandoned" = (await mutex.status()).state
    if (state !== "free") {
        throw new Error("await using did not release")
    }
    const length: number = await mutex.execute(async (hold: Hold) => `${hold.token}`.length)
    if (length === 0) {
        throw new Error("no value")
    }
    try {
        await mutex.release()
        throw new Error("released without a hold")
    } catch (error) {
        const { code }: MutexError = error as MutexError
        if (code !== "ERR_IPCMUTEX_NOT_OWNER") {
            throw error
        }
    }
    // @ts-expect-error a timeout is a number
    await mutex.acquire({ timeout: "1s" }).then(() => { throw new Error("a text is a timeout") }, () => {})
    // @ts-expect-error a Hold comes from a Mutex
    Hold.prototype.constructor satisfies new () => Hold
    await mutex.close()
}

main().catch((error: unknown) => {
    console.error(error)
    process.exitCode = 1
})
