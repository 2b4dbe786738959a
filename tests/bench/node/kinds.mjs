// The locks of Node programs, each as its own documentation uses it. A package is loaded by the kind that needs it.
import { fork } from "node:child_process"
import { createRequire } from "node:module"
import { writeFileSync } from "node:fs"

const require = createRequire(import.meta.url)

const ours = (url, sync) => (params) => {
  const Mutex = require("ipcmutex")
  const mutex = new Mutex(url(params))
  return {
    open: () => mutex.open(),
    acquire: sync ? () => mutex.acquireSync() : () => mutex.acquire(),
    release: sync ? () => mutex.releaseSync() : () => mutex.release(),
    close: () => mutex.close(),
    sync,
  }
}
const file = (params) => `mpm:${params.file}`
const inRedis = (params) => `rpm+redis+unix://${params.socket}?id=${params.id}&ttl=${params.ttl_ms}ms`

function asyncMutex() {
  const { Mutex } = require("async-mutex")
  const mutex = new Mutex()
  let release
  return {
    alone: "it lives in one process",
    open: async () => {},
    acquire: async () => (release = await mutex.acquire()),
    release: async () => release(),
    close: async () => {},
  }
}

function slocket(params) {
  const slocket = require("slocket")
  let lock
  return {
    open: async () => {},
    acquire: async () => (lock = await slocket(params.file)),
    release: async () => lock.release(),
    close: async () => {},
  }
}

// Needs a broker: a process of its own, as its readme runs it.
function liveMutex(params) {
  const { Client } = require("live-mutex")
  const udsPath = `${params.file}.uds`
  let client, held
  return {
    prepare: () =>
      new Promise((resolve, reject) => {
        const broker = fork(new URL("broker.mjs", import.meta.url), [udsPath], { stdio: ["ignore", "ignore", "ignore", "ipc"] })
        broker.once("message", () => {
          broker.removeAllListeners("exit")
          process.once("exit", () => broker.kill("SIGKILL"))
          resolve(broker)
        })
        broker.once("exit", (code) => reject(new Error(`the broker ended with ${code}`)))
      }),
    open: async () => {
      client = new Client({ udsPath, lockRequestTimeout: 60000 })
      client.emitter.on("warning", () => {})
      await client.ensure()
    },
    acquire: async () => (held = await client.acquire(params.id, { ttl: 60000 })),
    release: async () => client.release(params.id, held.id),
    close: async () => client.close(),
  }
}

// Without `retries` it does not wait at all; it looks again every 10 ms here.
function properLockfile(params) {
  const lockfile = require("proper-lockfile")
  let release
  return {
    prepare: async () => writeFileSync(params.file, ""),
    open: async () => {},
    acquire: async () => {
      release = await lockfile.lock(params.file, { stale: 5000, retries: { forever: true, factor: 1, minTimeout: 10, maxTimeout: 10 } })
    },
    release: async () => release(),
    close: async () => {},
  }
}

function redlock(params) {
  const Redlock = require("redlock")
  const { Redis } = require("ioredis")
  let client, lock, manager
  return {
    open: async () => {
      client = new Redis(params.socket)
      manager = new Redlock([client], { retryCount: -1 })
    },
    acquire: async () => (lock = await manager.lock(params.id, Number(params.ttl_ms))),
    release: async () => lock.unlock(),
    close: async () => client.quit(),
  }
}

// A lock that is none: the exclusion checks must find it out.
const none = () => ({ open: async () => {}, acquire: async () => {}, release: async () => {}, close: async () => {} })

export const kinds = {
  ipcmutex: ours(file, false),
  "ipcmutex-sync": ours(file, true),
  "ipcmutex-unix": ours(inRedis, false),
  "async-mutex": asyncMutex,
  slocket,
  "live-mutex": liveMutex,
  "proper-lockfile": properLockfile,
  redlock,
  none,
}
