// The demo's worker in Node: see README.md.
import { openSync, readSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Mutex } from "ipcmutex";

const ACCOUNTS = ["alice", "bob", "carol", "dave", "transfers"];
const [url, path, lasting] = process.argv.slice(2);
const ledger = openSync(path, "r+"), now = () => process.hrtime.bigint();
let linger = false;

const tell = (...words) => writeSync(1, words.join(" ") + "\n");

function writeHead(books) {
  writeSync(ledger, books.map((value, line) => `${ACCOUNTS[line].padEnd(11)}${String(value).padStart(20)}\n`).join(""), 0);
}

function writeEntry(at, token, side, account, amount) {
  const words = [String(token).padStart(20), "node".padEnd(6), String(process.pid).padStart(7), side.padEnd(6)];
  writeSync(ledger, [...words, ACCOUNTS[account].padEnd(7), String(amount).padStart(12)].join(" ") + "\n", 160 + 64 * at);
}

process.on("SIGUSR2", () => (linger = true));
const mutex = new Mutex(url);
const until = now() + BigInt(Math.round(Number(lasting) * 1e9));
while (now() < until) {
  const asked = now();
  const told = await mutex.execute(async (hold) => {
    const entered = now(), head = Buffer.alloc(160);
    readSync(ledger, head, 0, 160, 0);
    const books = head.toString().trimEnd().split("\n").map((line) => Number(line.slice(11)));
    const n = books[4], from = n % 4, to = (n + 1 + (Math.floor(n / 4) % 3)) % 4, amount = 1 + (n % 97);
    let repaired = 0;
    if (hold.abandoned) {
      repaired = 4_000_000 - books[0] - books[1] - books[2] - books[3];
      books[from] += repaired;
    }
    writeEntry(2 * n, hold.token, "debit", from, amount);
    books[from] -= amount;
    writeHead(books);
    if (linger) {
      tell("mid", asked, entered, hold.token);
      await sleep(3_600_000);
    }
    await sleep(0.5);
    writeEntry(2 * n + 1, hold.token, "credit", to, amount);
    books[to] += amount;
    books[4] = n + 1;
    writeHead(books);
    return ["hold", asked, entered, now(), hold.token, Number(hold.abandoned), repaired];
  });
  tell(...told);
}
await mutex.close();
