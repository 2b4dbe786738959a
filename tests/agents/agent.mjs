// The Node agent: see README.md.
import { closeSync, openSync, readSync, writeFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { inspect } from "node:util";
import { Mutex } from "ipcmutex";

const locks = new Map(), holds = new Map(), waits = new Map();
const now = () => process.hrtime.bigint();
const say = (number, text) => process.stdout.write(`${number} ${text}\n`);
const oneLine = (text) => String(text).replace(/\s+/g, " ");
const stopped = new Error("cancelled by the agent");

function failed(number, error) {
  const code = error === stopped ? "CANCELED" : String(error?.code ?? error?.name).replace("ERR_IPCMUTEX_", "");
  say(number, `${code} | ${oneLine(error?.message ?? error)}`);
}

function options(limit, signal) {
  return { ...(limit === "forever" ? {} : { timeout: Number(limit) }), ...(signal ? { signal } : {}) };
}

const describe = (hold, from) => `token=${hold.token} abandoned=${Number(hold.abandoned)} from=${from} to=${now()}`;

async function taken(lock, limit, signal) {
  // A try is the call for it; every other limit goes through acquire.
  const hold = limit === "0" ? await lock.tryAcquire() : await lock.acquire(options(limit, signal));
  if (hold === null) throw Object.assign(new Error("tryAcquire answered null"), { code: "ERR_IPCMUTEX_TIMEOUT" });
  return hold;
}

let entrants = 0n;

const commands = {
  async open(lock, url) {
    const opened = new Mutex(url === "null" ? null : Buffer.from(url.replace("-", ""), "hex").toString());
    await opened.open();
    locks.set(lock, opened);
  },
  reopen: (lock) => locks.get(lock).open(),
  close: (lock) => locks.get(lock).close(),
  async acquire(lock, limit) {
    const from = now();
    await taken(locks.get(lock), limit);
    return `from=${from} to=${now()}`;
  },
  release: (lock) => locks.get(lock).release(),
  async hold(lock, hold, limit) {
    const from = now();
    holds.set(hold, await taken(locks.get(lock), limit));
    return describe(holds.get(hold), from);
  },
  async async(lock, hold, limit, wait) {
    const from = now(), controller = new AbortController();
    waits.set(wait, controller);
    holds.set(hold, await locks.get(lock).acquire(options(limit, controller.signal)));
    return describe(holds.get(hold), from);
  },
  cancel: (wait) => waits.get(wait).abort(stopped),
  end: (hold) => holds.get(hold).release(),
  check: (hold) => holds.get(hold).check(),
  extend: (hold, ms) => holds.get(hold).extend(Number(ms)),
  lost(hold) {
    const { signal } = holds.get(hold);
    return new Promise((_, told) => signal.addEventListener("abort", () => told(signal.reason), { once: true }));
  },
  async status(lock) {
    const s = await locks.get(lock).status();
    return `state=${s.state} token=${s.token} waiters=${s.waiters} owner_pid=${s.ownerPid}` +
      ` owner_host=${s.ownerHost} owner_label=${s.ownerLabel} held_ms=${s.heldMs}`;
  },
  show: (lock) => `| ${oneLine(inspect(locks.get(lock)))}`,
  break: (lock) => locks.get(lock).breakLock(),
  // As ../src/occupancy.rs has it; "none" takes no lock.
  async hammer(lock, file, records, ms, mode) {
    const until = now() + BigInt(ms) * 1_000_000n, me = BigInt(process.pid) << 16n | ++entrants;
    const cell = openSync(file, "r+"), bytes = Buffer.alloc(8), visits = [];
    const read = (at) => (readSync(cell, bytes, 0, 8, at), bytes.readBigUInt64LE());
    const write = (at, value) => (bytes.writeBigUInt64LE(value), writeSync(cell, bytes, 0, 8, at));
    let overlaps = 0;
    while (now() < until) {
      const hold = mode === "lock" ? await locks.get(lock).acquire() : null;
      const entered = now();
      const someone = read(0) !== 0n;
      write(0, me);
      const seen = read(8);
      await new Promise(setImmediate);
      write(8, seen + 1n);
      overlaps += Number(someone) + Number(read(0) !== me);
      write(0, 0n);
      visits.push(entered, now(), hold?.token ?? 0n);
      await hold?.release();
    }
    closeSync(cell);
    writeFileSync(records, new BigUint64Array(visits));
    return `count=${visits.length / 3} overlaps=${overlaps}`;
  },
};

async function answer(number, [verb, ...words]) {
  try {
    say(number, `OK ${(await commands[verb](...words)) ?? ""}`);
  } catch (error) {
    failed(number, error);
  }
}

let turn = Promise.resolve();
for await (const line of createInterface({ input: process.stdin })) {
  const [number, ...words] = line.split(" ");
  if (words[0].startsWith("&")) {
    answer(number, [words[0].slice(1), ...words.slice(1)]);
  } else {
    turn = turn.then(() => answer(number, words));
  }
}
