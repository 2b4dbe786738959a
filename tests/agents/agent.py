"""The Python agent: see README.md."""

import asyncio
import itertools
import mmap
import os
import sys
import threading
import time

import ipcmutex

urls, locks, tasks, holds, waits = {}, {}, {}, {}, {}
entrants = itertools.count(1)
loop = asyncio.new_event_loop()
# The names of the table, by class, nearest first.
CODES = {
    "AcquireTimeout": "TIMEOUT", "Canceled": "CANCELED", "LockLost": "LOST", "NotOwner": "NOT_OWNER", "Closed": "CLOSED",
    "Forked": "FORKED", "InvalidArgument": "INVALID", "PermissionDenied": "PERMISSION", "UnsafePath": "UNSAFE",
    "NoSpace": "NO_SPACE", "ResourceExhausted": "RESOURCE", "IoError": "IO", "Unavailable": "UNAVAILABLE",
    "AuthError": "AUTH", "ConfigError": "CONFIG", "ProtocolError": "PROTOCOL", "Unsupported": "UNSUPPORTED",
    "InternalError": "PANIC", "CancelledError": "CANCELED",
}


def code(error):
    return next((CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in CODES), type(error).__name__)


def say(number, text):
    sys.stdout.write(f"{number} {text}\n")
    sys.stdout.flush()


def failed(number, error):
    say(number, f"{code(error)} | {' '.join(str(error).split())}")


def seconds(text):
    return None if text == "forever" else float(text) / 1000


def describe(hold, begun):
    return f"token={hold.token} abandoned={int(hold.abandoned)} from={begun} to={time.monotonic_ns()}"


def in_loop(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


async def awaited(call):
    await call()


def outcome(call):
    try:
        result = call()
    except BaseException as error:
        return code(error)
    return "TIMEOUT" if result is False else "OK"


class Agent:
    def open(self, lock, url):
        urls[lock] = None if url == "null" else bytes.fromhex(url.replace("-", "")).decode("utf-8", "surrogateescape")
        locks[lock] = ipcmutex.Mutex(urls[lock])

    def reopen(self, lock):
        locks[lock].open()

    def close(self, lock):
        if lock in tasks:
            in_loop(tasks.pop(lock).close()).result()
        locks[lock].close()

    def acquire(self, lock, limit):
        begun, limit = time.monotonic_ns(), seconds(limit)
        taken = locks[lock].acquire() if limit is None else locks[lock].acquire(limit != 0, -1 if limit == 0 else limit)
        ended = time.monotonic_ns()
        if not taken:
            raise ipcmutex.AcquireTimeout("acquire answered False")
        return f"from={begun} to={ended}"

    def release(self, lock):
        locks[lock].release()

    def hold(self, lock, hold, limit):
        begun = time.monotonic_ns()
        holds[hold] = locks[lock].hold(timeout=seconds(limit))
        return describe(holds[hold], begun)

    def end(self, hold):
        held = holds[hold]
        if isinstance(held, ipcmutex.Hold):
            held.release()
        else:
            in_loop(awaited(held.release)).result()

    def check(self, hold):
        holds[hold].check()

    def extend(self, hold, ms):
        holds[hold].extend(float(ms) / 1000)

    def token(self, lock):
        return f"token={locks[lock].token}"

    def status(self, lock):
        s = locks[lock].status()
        return (f"state={s.state} token={s.token} waiters={s.waiters} owner_pid={s.owner_pid}"
                f" owner_host={s.owner_host} owner_label={s.owner_label} held_ms={s.held_ms}")

    def show(self, lock):
        return f"| {locks[lock]!r}"

    def fork(self, lock, hold):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            lock, hold = locks[lock], holds[hold]
            told = f"release={outcome(lock.release)} end={outcome(hold.release)} try={outcome(lambda: lock.acquire(False))}"
            os.write(write, told.encode())
            os._exit(0)
        os.close(write)
        told = os.read(read, 400).decode()
        os.close(read)
        assert os.waitpid(child, 0)[1] == 0
        return told

    def hammer(self, lock, file, records, ms, mode):
        """As ../src/occupancy.rs has it; "none" takes no lock."""
        until, me, visits, overlaps = time.monotonic_ns() + int(ms) * 10**6, os.getpid() << 16 | next(entrants), [], 0
        with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 16) as memory, memoryview(memory) as view:
            cell = view.cast("Q")
            while time.monotonic_ns() < until:
                hold = locks[lock].hold() if mode == "lock" else None
                entered = time.monotonic_ns()
                someone = cell[0] != 0
                cell[0] = me
                seen = cell[1]
                os.sched_yield()
                cell[1] = seen + 1
                overlaps += someone + (cell[0] != me)
                cell[0] = 0
                visits += (entered, time.monotonic_ns(), hold.token if hold else 0)
                if hold:
                    hold.release()
            cell.release()
        with open(records, "wb") as out:
            out.write(b"".join(number.to_bytes(8, "little") for number in visits))
        return f"count={len(visits) // 3} overlaps={overlaps}"


setattr(Agent, "break", lambda self, lock: locks[lock].break_lock())


async def wait(number, lock, hold, limit):
    begun = time.monotonic_ns()
    try:
        if lock not in tasks:
            tasks[lock] = ipcmutex.AsyncMutex(urls[lock])
        holds[hold] = await tasks[lock].hold(timeout=seconds(limit))
        say(number, f"OK {describe(holds[hold], begun)}")
    except BaseException as error:
        failed(number, error)


def answer(number, command):
    verb, *words = command.split(" ")
    try:
        if verb == "async":
            lock, hold, limit, name = words
            waits[name] = in_loop(wait(number, lock, hold, limit))
        elif verb == "cancel":
            waits[words[0]].cancel()
            say(number, "OK")
        elif verb == "lost":
            holds[words[0]].on_lost(lambda error: failed(number, error))
        else:
            say(number, f"OK {getattr(Agent(), verb)(*words) or ''}")
    except BaseException as error:
        failed(number, error)


threading.Thread(target=loop.run_forever, daemon=True).start()
for line in sys.stdin:
    number, command = line.rstrip("\n").split(" ", 1)
    if command.startswith("&"):
        threading.Thread(target=answer, args=(number, command[1:]), daemon=True).start()
    else:
        answer(number, command)
