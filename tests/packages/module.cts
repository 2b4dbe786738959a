// What a TypeScript program says, as a CommonJS module.
import Mutex = require("ipcmutex")

async function main (): Promise<void> {
    const mutex: Mutex.Mutex = new Mutex("spm:typescript")
    const options: Mutex.AcquireOptions = { timeout: 1000 }
    const hold: Mutex.Hold = await mutex.acquire(options)
    const status: Mutex.Status = await mutex.status()
    if (!(hold instanceof Mutex.Hold) || status.token !== hold.token || await mutex.tryAcquire() !== null) {
        throw new Error("not held")
    }
    await hold.release()
    await mutex.release().then(() => { throw new Error("released twice") }, ({ code }: Mutex.MutexError) => {
        if (code !== "ERR_IPCMUTEX_NOT_OWNER") {
            throw new Error(code)
        }
    })
    const broken = mutex.execute(async () => await mutex.breakLock() ? "given" : "")
    await broken.then(() => { throw new Error("not lost") }, ({ code, result, cause }: Mutex.MutexError) => {
        if (code !== "ERR_IPCMUTEX_LOST" || result !== "given" || cause !== undefined) {
            throw new Error(code)
        }
    })
    await mutex.close()
}

main().catch((error: unknown) => {
    console.error(error)
    process.exitCode = 1
})
