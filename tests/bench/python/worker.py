"""The Python worker: worker.py TASK KIND key=value... The tasks are those of the C worker (c/*.c), in Python."""

from __future__ import annotations

import array
import ctypes
import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from kinds import KINDS, Kind

now = time.monotonic_ns
GO, STOP, COUNTER, TURN, ARRIVING, ENTERED, DONE, FIRST = range(8)  # cells of the board
LOGGED = 1 << 16


class Failure(Exception):
    """Words for the report."""


def board() -> Any:
    """Numbers that all processes see."""
    return memoryview(mmap.mmap(-1, 4096)).cast("q")


def child(work: Callable[[], None]) -> int:
    """A process that does `work` and ends; it dies with its parent."""
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        work()
    except BaseException as error:  # noqa: BLE001  the words go into the report, whatever they are
        # One write: others may fail at the same time.
        os.write(1, json.dumps({"failed": "".join(traceback.format_exception_only(error)).strip()[-500:]}).encode() + b"\n")
        os._exit(1)
    os._exit(0)


def await_children(pids: list[int]) -> None:
    """A child that failed has said so."""
    if any(os.waitpid(pid, 0)[1] for pid in pids):
        os._exit(1)


def await_asleep(pid: int, cells: Any) -> None:
    """Until it sleeps in the kernel, and has done so for a moment."""
    since = 0
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
        while True:
            if cells[ENTERED]:
                raise Failure("not exclusive: the waiter came in while it was held")
            state = os.pread(stat.fileno(), 512, 0)
            if state[state.rindex(b")") + 2 : state.rindex(b")") + 3] != b"S":
                since = 0
                os.sched_yield()
            elif not since:
                since = now()
            elif now() - since > 200_000:
                return


def timed(seconds: float, batch: int, turn: Callable[[int], None]) -> dict[str, float]:
    """Nanoseconds per turn, after a tenth of the time for warming up."""
    wanted, turns, start = seconds * 1e9, 0, now()
    while now() - start < wanted / 10:
        turn(1)
    start = now()
    while now() - start < wanted:
        turn(batch)
        turns += batch
    return {"ns": (now() - start) / turns}


def pair(kind: Kind, params: dict[str, str]) -> Any:
    """acquire and release, free"""
    kind.prepare()
    kind.open()
    acquire, release = kind.acquire, kind.release

    def turn(n: int) -> None:
        for _ in range(n):
            acquire()
            release()

    return timed(float(params["seconds"]), int(params.get("batch", 100)), turn)


def opening(kind: Kind, params: dict[str, str]) -> Any:
    """open, acquire, release, close"""
    kind.prepare()

    def turn(n: int) -> None:
        for _ in range(n):
            kind.open()
            kind.acquire()
            kind.release()
            kind.close()

    return timed(float(params["seconds"]), 1, turn)


def contend(kind: Kind, params: dict[str, str]) -> Any:
    """processes that want it all the time"""
    n, wanted, logs = int(params["processes"]), float(params["seconds"]), params.get("logs")
    cells = board()
    kind.prepare()

    def hammer(me: int) -> None:
        kind.open()
        log = array.array("q")
        longest = 0
        os.write(ready[1], b"r")
        while not cells[GO]:
            os.sched_yield()
        while not cells[STOP]:
            request = now()
            kind.acquire()
            enter = now()
            counter = cells[COUNTER]
            longest = max(longest, enter - request)
            cells[FIRST + 2 * me] += 1
            cells[COUNTER] = counter + 1
            if logs and len(log) < 3 * LOGGED:
                log.extend((request, enter, now()))
            kind.release()
        cells[FIRST + 2 * me + 1] = longest
        kind.close()
        if logs:
            with open(f"{logs}.{me}", "wb") as file:
                log.tofile(file)

    ready = os.pipe()
    pids = [child(lambda me=me: hammer(me)) for me in range(n)]  # type: ignore[misc]
    os.close(ready[1])
    for _ in range(n):
        if not os.read(ready[0], 1):
            await_children(pids)
    cells[GO] = 1
    time.sleep(wanted / 10)
    before, start = [cells[FIRST + 2 * me] for me in range(n)], now()
    time.sleep(wanted)
    after, end = [cells[FIRST + 2 * me] for me in range(n)], now()
    cells[STOP] = 1
    await_children(pids)
    total = sum(cells[FIRST + 2 * me] for me in range(n))
    if total != cells[COUNTER]:
        raise Failure(f"not exclusive: {total - cells[COUNTER]} of {total} turns were lost")
    return {"per_second": (sum(after) - sum(before)) * 1e9 / (end - start), "least": min(after), "most": max(after),
            "longest_ns": max(cells[FIRST + 2 * me + 1] for me in range(n))}


def handover(kind: Kind, params: dict[str, str]) -> Any:
    """release in one process to entry in the next, which sleeps"""
    rounds, limit = int(params["samples"]), now() + float(params["seconds"]) * 1e9
    cells = board()
    kind.prepare()

    def wait() -> None:
        kind.open()
        turn = 0
        while not cells[STOP]:
            if cells[TURN] == turn:
                os.sched_yield()
                continue
            turn = cells[TURN]
            cells[ARRIVING] = turn
            kind.acquire()
            cells[ENTERED] = now()
            kind.release()
            cells[DONE] = turn
        kind.close()

    waiter = child(wait)
    kind.open()
    samples: list[int] = []
    warming = 3
    for turn in range(1, rounds + warming + 1):
        kind.acquire()
        cells[ENTERED] = 0
        cells[TURN] = turn
        while cells[ARRIVING] != turn:
            if os.waitpid(waiter, os.WNOHANG)[0]:
                os._exit(1)
            os.sched_yield()
        await_asleep(waiter, cells)
        start = now()
        kind.release()
        while cells[DONE] != turn:
            os.sched_yield()
        if turn > warming:
            samples.append(cells[ENTERED] - start)
        if now() > limit and samples:
            break
    cells[STOP] = 1
    kind.close()
    await_children([waiter])
    return {"samples": samples}


def recovery(kind: Kind, params: dict[str, str]) -> Any:
    """the next owner after kill -9 of the owner"""
    from_exit, from_kill = [], []
    limit = int(params["limit_ms"]) * 1_000_000
    cells = board()
    kind.prepare()

    def own() -> None:
        kind.open()
        kind.acquire()
        cells[TURN] = 1
        signal.pause()

    def wait() -> None:
        kind.open()
        cells[ARRIVING] = 1
        kind.acquire()
        cells[ENTERED] = now()
        kind.release()
        kind.close()

    for _ in range(int(params["samples"])):
        cells[TURN] = cells[ARRIVING] = cells[ENTERED] = 0
        owner = child(own)
        while not cells[TURN]:
            if os.waitpid(owner, os.WNOHANG)[0]:
                os._exit(1)
            time.sleep(0.001)
        waiter = child(wait)
        while not cells[ARRIVING]:
            if os.waitpid(waiter, os.WNOHANG)[0]:
                os._exit(1)
            time.sleep(0.001)
        await_asleep(waiter, cells)
        start = now()
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        told = now()
        while not cells[ENTERED] and now() - told < limit:
            time.sleep(0.0002)
        if not cells[ENTERED]:
            os.kill(waiter, signal.SIGKILL)
            os.waitpid(waiter, 0)
            return {"never_ms": limit // 1_000_000}
        await_children([waiter])
        from_exit.append(cells[ENTERED] - told)
        from_kill.append(cells[ENTERED] - start)
    return {"samples": from_exit, "from_kill": from_kill}


def hold(kind: Kind, _: dict[str, str]) -> Any:
    """holds until it is killed"""
    kind.prepare()
    kind.open()
    kind.acquire()
    print("{}", flush=True)
    signal.pause()


def wait(kind: Kind, _: dict[str, str]) -> Any:
    """waits until it is killed"""
    kind.open()
    kind.acquire()
    raise Failure("it came in while it was held")


def main() -> None:
    """One task."""
    tasks = {task.__name__: task for task in (pair, opening, contend, handover, recovery, hold, wait)}
    params = dict(argument.split("=", 1) for argument in sys.argv[3:])
    try:
        kind = KINDS[sys.argv[2]](params)
        if kind.alone and sys.argv[1] != "pair" and sys.argv[1] != "opening":
            told: Any = {"cannot": kind.alone}
        else:
            told = tasks[sys.argv[1]](kind, params)
    except Exception as error:
        told = {"failed": "".join(traceback.format_exception_only(error)).strip()[-500:]}
    print(json.dumps(told), flush=True)


main()
