// The Node worker: worker.mjs TASK KIND key=value... The tasks are those of the C worker (c/*.c), in Node.
import { fork } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { setTimeout as delay } from "node:timers/promises"
import { fileURLToPath } from "node:url"

import { kinds } from "./kinds.mjs"

const [task, kindName, ...rest] = process.argv.slice(2)
const params = Object.fromEntries(rest.map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)]))
const LOGGED = 1 << 16
const now = () => Number(process.hrtime.bigint())
const make = () => kinds[kindName](params)

class Failure extends Error {}

/** A process of the role, and its messages one after the other; its death with words, if it has any, is a failure. */
function child(role, more = {}) {
  const args = [role, kindName, ...rest, ...Object.entries(more).map(([key, value]) => `${key}=${value}`)]
  const process_ = fork(fileURLToPath(import.meta.url), args, { stdio: ["ignore", "ignore", "pipe", "ipc"] })
  const got = []
  let words = "", wake = () => {}
  process_.stderr.on("data", (data) => (words += data))
  process_.on("message", (message) => (got.push(message), wake()))
  const ended = new Promise((resolve) => process_.once("exit", (code, sign) => resolve({ code, sign, at: now() })))
  const closed = new Promise((resolve) => process_.once("close", resolve))
  let over = false
  closed.then(() => ((over = true), wake()))
  return {
    pid: process_.pid,
    ended,
    send: (message) => process_.send(message),
    kill: () => process_.kill("SIGKILL"),
    /** The next message; undefined when `limit` ms have passed. */
    async next(limit) {
      const end = now() + limit * 1e6
      for (;;) {
        if (got.length) return got.shift()
        if (over) throw new Failure(`a process ended: ${said(words)}`)
        const left = (end - now()) / 1e6
        if (left <= 0) return undefined
        const timer = new AbortController()
        await Promise.race([new Promise((resolve) => (wake = resolve)), delay(left, undefined, { signal: timer.signal }).catch(() => {})])
        timer.abort()
      }
    },
  }
}

/** The line of a stack that says what happened. */
function said(words) {
  const lines = words.split("\n").map((line) => line.trim()).filter(Boolean)
  return lines.find((line) => /^(Uncaught )?[A-Za-z]*(Error|Failure)\b/.test(line)) ?? lines[0] ?? "without a word"
}

const statOf = (pid) => readFileSync(`/proc/${pid}/stat`, "latin1").replace(/^.*\) /, "").split(" ")

/** How busy the process is while it should sleep: percent of a core, over half a second. */
async function busy(pid) {
  const ticks = () => Number(statOf(pid)[11]) + Number(statOf(pid)[12])
  const before = ticks()
  await delay(500)
  return (ticks() - before) * 2
}

/** Until the process sleeps and has done so at each of the last looks. This one's event loop goes on: it may be the server. */
async function asleep(waiter) {
  for (let looks = 0, all = 0; looks < 4; all++) {
    await delay(1)
    looks = statOf(waiter.pid)[0] === "S" ? looks + 1 : 0
    if (all > 3000) throw new Failure(`the waiter does not sleep: it uses ${await busy(waiter.pid)} % of a core`)
  }
}

async function turns(kind, n) {
  if (kind.sync) {
    for (let i = 0; i < n; i++) {
      kind.acquire()
      kind.release()
    }
  } else {
    for (let i = 0; i < n; i++) {
      await kind.acquire()
      await kind.release()
    }
  }
}

async function timed(batch, turn) {
  const wanted = Number(params.seconds) * 1e9
  let start = now(), count = 0
  while (now() - start < wanted / 5) await turn(1)
  start = now()
  for (; now() - start < wanted; count += batch) await turn(batch)
  return { ns: (now() - start) / count }
}

const tasks = {
  async pair() {
    const kind = make()
    await kind.prepare?.()
    await kind.open()
    return timed(Number(params.batch ?? 100), (n) => turns(kind, n))
  },

  async opening() {
    await make().prepare?.()
    return timed(1, async () => {
      const kind = make()
      await kind.open()
      await turns(kind, 1)
      await kind.close()
    })
  },

  async contend() {
    await make().prepare?.()
    const n = Number(params.processes), seconds = Number(params.seconds)
    const children = Array.from({ length: n }, (_, me) => child("hammer", { me }))
    for (const one of children) if (!(await one.next(20000))) throw new Failure("a process does not get ready within 20 s")
    const start = now() + 20e6, from = start + seconds * 1e8, end = from + seconds * 1e9
    for (const one of children) one.send({ start, from, end })
    const told = []
    for (const one of children) {
      const answer = await one.next((end - now()) / 1e6 + 2500)
      if (!answer) throw new Failure(`a process still waits 2.5 s after the others have ended, and uses ${await busy(one.pid)} % of a core`)
      told.push(answer)
    }
    const counts = told.map((one) => one.counted)
    return {
      per_second: counts.reduce((sum, one) => sum + one, 0) / seconds,
      least: Math.min(...counts), most: Math.max(...counts), longest_ns: Math.max(...told.map((one) => one.longest)),
    }
  },

  async handover() {
    const kind = make()
    await kind.prepare?.()
    await kind.open()
    const waiter = child("waiter"), samples = [], limit = now() + Number(params.seconds) * 1e9
    await waiter.next(20000)
    for (let turn = -3; turn < Number(params.samples); turn++) {
      await kind.acquire()
      waiter.send("turn")
      await waiter.next(5000)
      await asleep(waiter)
      const start = now()
      await kind.release()
      const entered = await waiter.next(10000)
      if (!entered) throw new Failure(`the waiter is not in 10 s after the release, and uses ${await busy(waiter.pid)} % of a core`)
      if (entered.at < start) throw new Failure("not exclusive: the waiter came in while it was held")
      await waiter.next(10000)
      if (turn >= 0) samples.push(entered.at - start)
      if (now() > limit && samples.length) break
    }
    return { samples }
  },

  async recovery() {
    await make().prepare?.()
    const samples = [], from_kill = [], limit = Number(params.limit_ms)
    for (let turn = 0; turn < Number(params.samples); turn++) {
      const owner = child("holder")
      await owner.next(20000)
      const waiter = child("waiter")
      await waiter.next(20000)
      waiter.send("turn")
      await waiter.next(5000)
      await asleep(waiter)
      const start = now()
      owner.kill()
      const { at: told } = await owner.ended
      const entered = await waiter.next(limit)
      if (!entered) {
        const use = await busy(waiter.pid)
        return { never_ms: limit, notes: [`the waiter uses ${use} % of a core meanwhile`] }
      }
      if (entered.at < start) throw new Failure("not exclusive: the waiter came in while it was held")
      samples.push(entered.at - told)
      from_kill.push(entered.at - start)
      waiter.kill()
      await waiter.ended
    }
    return { samples, from_kill }
  },

  async hold() {
    const kind = make()
    await kind.prepare?.()
    await kind.open()
    await kind.acquire()
    console.log("{}")
    await delay(2 ** 31 - 1)
  },

  async wait() {
    const kind = make()
    await kind.open()
    await kind.acquire()
    throw new Failure("it came in while it was held")
  },
}

// What the processes of a task do; they talk with it by messages.
const roles = {
  async hammer() {
    const kind = make()
    await kind.open()
    process.send("ready")
    const { start, from, end } = await new Promise((resolve) => process.once("message", resolve))
    await delay(Math.max(0, (start - now()) / 1e6))
    const log = new Float64Array(3 * LOGGED)
    let logged = 0, longest = 0, counted = 0
    for (;;) {
      const request = now()
      if (request >= end) break
      if (kind.sync) kind.acquire()
      else await kind.acquire()
      const enter = now()
      if (enter - request > longest) longest = enter - request
      if (enter >= from && enter < end) counted++
      if (logged < log.length) {
        log[logged++] = request
        log[logged++] = enter
        log[logged++] = now()
      }
      if (kind.sync) kind.release()
      else await kind.release()
    }
    writeFileSync(`${params.logs}.${params.me}`, BigInt64Array.from(log.subarray(0, logged), (value) => BigInt(value)))
    await new Promise((resolve) => process.send({ counted, longest }, resolve))
    await kind.close()
  },

  async waiter() {
    const kind = make()
    await kind.open()
    process.send("ready")
    for (;;) {
      await new Promise((resolve) => process.once("message", resolve))
      process.send("arriving")
      if (kind.sync) await new Promise((resolve) => setImmediate(resolve))
      await kind.acquire()
      const at = now()
      process.send({ at })
      await kind.release()
      process.send("done")
    }
  },

  async holder() {
    const kind = make()
    await kind.open()
    await kind.acquire()
    process.send("held")
    await delay(2 ** 31 - 1)
  },
}

if (roles[task]) {
  await roles[task]()
  process.exit(0)
}
let told
try {
  told = make().alone && task !== "pair" && task !== "opening" ? { cannot: make().alone } : await tasks[task]()
} catch (error) {
  told = { failed: `${error.name === "Error" ? "" : `${error.name}: `}${error.message}`.replace(/^Failure: /, "") }
}
console.log(JSON.stringify(told))
process.exit(0)
