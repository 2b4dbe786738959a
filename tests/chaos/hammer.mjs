// A participant of the chaos runs in Node; ../src/chaos/record.rs says what it tells, and README.md what all of them do.
import { once } from "node:events";
import { openSync, readSync, writeSync } from "node:fs";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Mutex } from "ipcmutex";

const [ASKED, ENTERED, CHECKED, LEFT, RELEASED, GAVE_UP, DID] = [1, 2, 3, 4, 5, 6, 7];
const [CLOSE, CANCEL] = [2, 3];
// The table's codes that can be met here.
const CODES = { TIMEOUT: 1, CANCELED: 2, LOST: 3, NOT_OWNER: 4, CLOSED: 5, RESOURCE: 12, IO: 13, UNAVAILABLE: 14, AUTH: 15, CONFIG: 16, PROTOCOL: 17, PANIC: 19 };
const { CHAOS_URL, CHAOS_CELL, CHAOS_LOG, CHAOS_INSTANCE, CHAOS_SEED, CHAOS_FENCE } = process.env;
const log = openSync(CHAOS_LOG, "a"), cell = openSync(CHAOS_CELL, "r+");
const driver = process.ppid; // nobody goes on without it
const now = () => process.hrtime.bigint();
const stopped = new Error("cancelled by the hammer");

const word = Buffer.alloc(8);
const read = (at) => (readSync(cell, word, 0, 8, at), word.readBigUInt64LE());
const write = (at, value) => (word.writeBigUInt64LE(value), writeSync(cell, word, 0, 8, at));

function codeOf(error) {
  if (error === stopped) return CODES.CANCELED;
  const code = CODES[String(error?.code).replace("ERR_IPCMUTEX_", "")];
  if (code === undefined) throw error;
  return code;
}

function codeOfCall(call) {
  try {
    call();
    return 0;
  } catch (error) {
    return codeOf(error);
  }
}

// mulberry32: Node's own random numbers take no seed.
function randomOf(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

class Entrant {
  constructor(number) {
    this.who = (BigInt(CHAOS_INSTANCE) << 16n) | BigInt(number);
    this.random = randomOf(Number(CHAOS_SEED) ^ (number << 24));
  }

  tell(kind, { at = now(), token = 0n, a = 0, b = 0n, c = 0n } = {}) {
    writeSync(log, new BigUint64Array([BigInt(kind), at, this.who, token, BigInt(a), b, c, 0n]));
  }

  // The resource that refuses old tokens; each entrant has a connection of its own.
  async fence(token) {
    if (!CHAOS_FENCE) return;
    if (!this.socket) {
      this.socket = connect(CHAOS_FENCE);
      await once(this.socket, "connect");
    }
    const answer = once(this.socket, "data");
    this.socket.write(new BigUint64Array([token, this.who]));
    await answer;
  }

  async visit(hold, release) {
    const entered = now(), met = read(0);
    write(0, this.who);
    const seen = read(8);
    this.tell(ENTERED, { at: entered, token: hold.token, a: Number(hold.abandoned), b: met, c: seen });
    const at = now();
    this.tell(CHECKED, { at, a: codeOfCall(() => hold.check()) });
    await this.fence(hold.token);
    if (this.random() < 0.25) await sleep(this.random() * 2);
    else await new Promise(setImmediate);
    write(8, seen + 1n);
    await this.fence(hold.token);
    const leaving = now(), code = codeOfCall(() => hold.check()), stood = read(0);
    write(0, 0n);
    this.tell(LEFT, { at: leaving, a: code, b: stood });
    let released = 0;
    try {
      await release();
    } catch (error) {
      released = codeOf(error);
    }
    this.tell(RELEASED, { a: released });
  }

  async acquire(mutex, options, closing = false) {
    this.tell(ASKED);
    let hold;
    try {
      hold = await mutex.acquire(options);
    } catch (error) {
      return this.tell(GAVE_UP, { a: codeOf(error) });
    }
    await this.visit(hold, () => (closing ? mutex.close() : hold.release()));
  }

  async tryAcquire(mutex) {
    this.tell(ASKED);
    let hold;
    try {
      hold = await mutex.tryAcquire();
    } catch (error) {
      return this.tell(GAVE_UP, { a: codeOf(error) });
    }
    if (hold === null) this.tell(GAVE_UP, { a: CODES.TIMEOUT });
    else await this.visit(hold, () => hold.release());
  }

  async cancelled(mutex) {
    const controller = new AbortController();
    const timer = setTimeout(() => {
      this.tell(DID, { a: CANCEL });
      controller.abort(stopped);
    }, this.random() * 6);
    await this.acquire(mutex, { signal: controller.signal });
    clearTimeout(timer);
  }

  async open() {
    for (;;) {
      const mutex = new Mutex(CHAOS_URL);
      try {
        await mutex.open();
        return mutex;
      } catch (error) {
        if (codeOf(error) !== CODES.UNAVAILABLE) throw error;
        this.tell(ASKED);
        this.tell(GAVE_UP, { a: CODES.UNAVAILABLE });
        await sleep(20);
      }
    }
  }

  async closedWhileWaiting() {
    const mutex = await this.open();
    this.tell(ASKED);
    this.tell(DID, { a: CLOSE });
    const wait = mutex.acquire().then(() => CODES.CLOSED, codeOf);
    await sleep(this.random() * 5);
    // Granted before it is closed: then closing releases it.
    await mutex.close();
    this.tell(GAVE_UP, { a: await wait });
  }

  async run() {
    const mutex = await this.open();
    while (read(16) === 0n && process.ppid === driver) {
      await sleep(this.random() * 4);
      const how = this.random() * 100;
      if (how < 50) await this.acquire(mutex);
      else if (how < 68) await this.acquire(mutex, { timeout: 1 + this.random() * 30 });
      else if (how < 78) await this.tryAcquire(mutex);
      else if (how < 92) await this.cancelled(mutex);
      else if (how < 96) await this.closedWhileWaiting();
      else {
        const own = await this.open();
        this.tell(DID, { a: CLOSE });
        await this.acquire(own, { timeout: 30 }, true);
        await own.close().catch(codeOf);
      }
    }
    await mutex.close();
    this.socket?.end();
  }
}

await Promise.all([1, 2, 3].map((number) => new Entrant(number).run()));
