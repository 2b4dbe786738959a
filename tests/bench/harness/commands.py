"""What a waiter and a renewal cost the Redis server: each kind has a server of its own, and they wait at the same time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .servers import Redis

Row = dict[str, Any]
# Each waits behind a hold of its own kind, whose lease is long enough not to be renewed meanwhile.
WAITERS = (("c", "ipcmutex-unix"), ("rust", "rslock"), ("python", "redis-py"), ("python", "python-redis-lock"), ("node", "redlock"))
LEASE_MS = 3_600_000


class Monitor:
    """Counts the commands that clients send to a server; what a script does in the server is not sent by anyone."""

    def __init__(self, redis: Redis) -> None:
        self.wire = socket.socket(socket.AF_UNIX)
        self.wire.connect(str(redis.socket))
        self.wire.sendall(b"MONITOR\r\n")
        self.lines: list[bytes] = []
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        """Until the server ends."""
        with self.wire.makefile("rb") as file:
            for line in file:
                if b" lua] " not in line and not line.startswith(b"+OK"):
                    self.lines.append(line)


def start(workers: dict[str, list[str]], redis: Redis, folder: Path, language: str, task: str, kind: str, **more: Any) -> subprocess.Popen[str]:
    """A worker that holds or waits until it is killed."""
    params = {"file": folder / "unused", "socket": redis.socket, "port": redis.port, "id": "bench", "ttl_ms": LEASE_MS, **more}
    return subprocess.Popen([*workers[language], task, kind, *(f"{key}={value}" for key, value in params.items())], text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def held(worker: subprocess.Popen[str]) -> None:
    """Until it says that it holds."""
    assert worker.stdout
    watchdog = threading.Timer(60, worker.kill)
    watchdog.start()
    line = worker.stdout.readline()
    watchdog.cancel()
    if not line or "failed" in json.loads(line):
        raise RuntimeError(f"{worker.args}: {line}")


def stop(worker: subprocess.Popen[str]) -> None:
    """Ends what `start` began."""
    worker.kill()
    worker.wait()
    if worker.stdout:
        worker.stdout.close()


def row(task: str, title: str, language: str, kind: str, figures: dict[str, float], tag: str = "redis") -> Row:
    """In the form of all rows; it is measured once, since it is a count."""
    return {"task": task, "tag": tag, "title": title, "language": language, "kind": kind,
            "figures": {name: {"median": value, "min": value, "max": value, "rounds": [value]} for name, value in figures.items()}}


def waits(workers: dict[str, list[str]], languages: set[str], seconds: float) -> list[Row]:
    """The commands that one waiter sends while it waits."""
    title = f"a waiter of {seconds:g} s, Redis"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ipcmutex-bench-") as folder:
        servers, running, watched = [], [], []
        try:
            for language, kind in WAITERS:
                if language not in languages:
                    continue
                servers.append(Redis())
                owner = start(workers, servers[-1], Path(folder), language, "hold", kind)
                running.append(owner)
                try:
                    held(owner)
                except RuntimeError as error:
                    rows.append({"task": "commands", "tag": "redis", "title": title, "language": language, "kind": kind, "figures": {},
                                 "failed": [str(error)], "failed_rounds": "1 of 1"})
                    continue
                monitor = Monitor(servers[-1])
                waiter = start(workers, servers[-1], Path(folder), language, "wait", kind)
                running.append(waiter)
                watched.append((language, kind, monitor, waiter))
            time.sleep(seconds)
            for language, kind, monitor, waiter in watched:
                if waiter.poll() is None:
                    rows.append(row("commands", title, language, kind, {"commands": len(monitor.lines)}))
                else:
                    assert waiter.stdout
                    words = waiter.stdout.read().strip() or f"it ended with {waiter.returncode}"
                    rows.append({"task": "commands", "tag": "redis", "title": title, "language": language, "kind": kind, "figures": {},
                                 "failed": [words[-300:]], "failed_rounds": "1 of 1"})
        finally:
            for worker in running:
                stop(worker)
            for server in servers:
                server.close()
    return rows


def processor_seconds(pid: int) -> float:
    """What a process has used so far, in user and in system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def renewal(workers: dict[str, list[str]], holds: int, periods: int, lease_ms: int = 3000, tag: str = "redis") -> list[Row]:
    """How often the server is written to while it renews so many holds: one pipelined exchange is a read or a few, not one for each.
    And what they cost the process that holds them: connections, and the share of a core."""
    redis = Redis()
    with tempfile.TemporaryDirectory(prefix="ipcmutex-bench-") as folder:
        owner = start(workers, redis, Path(folder), "c", "hold", "ipcmutex-unix", locks=holds, ttl_ms=lease_ms)
        try:
            held(owner)
            time.sleep(lease_ms / 3000)
            before, calls, used, begun = redis.info("stats"), redis.calls(), processor_seconds(owner.pid), time.monotonic()
            time.sleep(periods * lease_ms / 3000)
            after, calls, lasted = redis.info("stats"), redis.calls() - calls, time.monotonic() - begun
            used = processor_seconds(owner.pid) - used
            # One of them is the one that asks.
            connections = int(redis.info("clients")["connected_clients"]) - 1
        finally:
            stop(owner)
            redis.close()
    change = {name: int(after[name]) - int(before[name]) for name in ("total_reads_processed", "total_net_input_bytes")}
    # The server reads 16 KiB at a time, so that many bytes are no less than so many reads.
    needed = max(periods, change["total_net_input_bytes"] / 16384)
    return [row("renewal", f"{holds} holds renewed, Redis", "c", "ipcmutex-unix",
                {"scripts_per_period": calls / periods, "reads_per_period": change["total_reads_processed"] / periods,
                 "reads_over_needed": change["total_reads_processed"] / needed, "connections": connections,
                 "percent_of_a_core": 100 * used / lasted}, tag)]
