"""The demo's worker in Python: see README.md."""

import os
import signal
import sys
import time

import ipcmutex

ACCOUNTS = ["alice", "bob", "carol", "dave", "transfers"]
url, path, lasting = sys.argv[1:]
ledger = os.open(path, os.O_RDWR)
linger = False


def stay(*_):
    global linger
    linger = True


def tell(*words):
    print(*words, flush=True)


def write_head(books):
    os.pwrite(ledger, "".join(f"{name:<11}{value:>20}\n" for name, value in zip(ACCOUNTS, books)).encode(), 0)


def write_entry(at, token, side, account, amount):
    line = f"{token:>20} {'python':<6} {os.getpid():>7} {side:<6} {ACCOUNTS[account]:<7} {amount:>12}\n"
    os.pwrite(ledger, line.encode(), 160 + 64 * at)


signal.signal(signal.SIGUSR2, stay)
mutex = ipcmutex.Mutex(url)
until = time.monotonic() + float(lasting)
while time.monotonic() < until:
    asked = time.monotonic_ns()
    with mutex as hold:
        entered = time.monotonic_ns()
        books = [int(line[11:]) for line in os.pread(ledger, 160, 0).decode().splitlines()]
        n, repaired = books[4], 0
        origin, target, amount = n % 4, (n + 1 + n // 4 % 3) % 4, 1 + n % 97
        if hold.abandoned:
            repaired = 4_000_000 - sum(books[:4])
            books[origin] += repaired
        write_entry(2 * n, hold.token, "debit", origin, amount)
        books[origin] -= amount
        write_head(books)
        if linger:
            tell("mid", asked, entered, hold.token)
            signal.pause()
        time.sleep(0.0005)
        write_entry(2 * n + 1, hold.token, "credit", target, amount)
        books[target] += amount
        books[4] = n + 1
        write_head(books)
        left = time.monotonic_ns()
    tell("hold", asked, entered, left, hold.token, int(hold.abandoned), repaired)
