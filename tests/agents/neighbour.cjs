// node-redlock on its own key: `neighbour.cjs redis://host:port`, and commands on standard input.
const readline = require("node:readline")
const Redis = require("ioredis")
const Redlock = require("redlock")

const clients = [new Redis(process.argv[2])]
const once = new Redlock(clients, { retryCount: 0 })
const patient = new Redlock(clients, { retryCount: -1, retryDelay: 50 })
let lock = null

async function answer([verb, key, ttl]) {
    try {
        if (verb === "release") await lock.unlock()
        else lock = await (verb === "try" ? once : patient).lock(key, Number(ttl) * 1000)
        return "yes"
    } catch (error) {
        if (error.name === "LockError") return "no"
        throw error
    }
}

async function main() {
    for await (const line of readline.createInterface({ input: process.stdin })) console.log(await answer(line.split(" ")))
    clients[0].disconnect()
}
main()
