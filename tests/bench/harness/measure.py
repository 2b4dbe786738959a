"""Runs the workers, round by round and in turns, and sums up what they printed."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import intervals
from .plan import Group
from .servers import Redis

Row = dict[str, Any]
PATIENCE = 60.0  # a worker that prints nothing for so long beyond its asked time has failed


def spread(values: list[float]) -> dict[str, Any]:
    """The figures of all rounds in one."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 1).__int__() - 1))]


def figures(told: dict[str, Any]) -> dict[str, float]:
    """The numbers of one round."""
    found = {name: float(told[name]) for name in ("ns", "each_ns", "per_second", "longest_ns", "never_ms", "bytes") if name in told}
    if "samples" in told:
        found["median_ns"] = statistics.median(told["samples"])
        found["p99_ns"] = percentile(told["samples"], 0.99)
    if "from_kill" in told:
        found["from_kill_ns"] = statistics.median(told["from_kill"])
    if told.get("most"):
        found["least_share"] = told["least"] / told["most"]
    return found | told.get("figures", {})


class Bench:
    """The programs that do the work, and where they do it."""

    def __init__(self, workers: dict[str, list[str]], quick: bool, redis: Redis | None) -> None:
        self.workers = workers
        self.quick = quick
        self.redis = redis
        self.folder = Path(tempfile.mkdtemp(prefix="ipcmutex-bench-"))
        self.turn = 0

    def close(self) -> None:
        """Removes what the runs left behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def once(self, group: Group, kind: str) -> dict[str, Any]:
        """One kind's turn: a fresh process on a fresh lock."""
        self.turn += 1
        place = self.folder / f"{self.turn}"
        params = {"file": place, "id": f"bench{self.turn}", "ttl_ms": 10000, **group.params, **({} if self.quick else group.full)}
        if params.get("logs"):
            params["logs"] = f"{place}.log"
        if self.redis:
            params |= {"socket": self.redis.socket, "port": self.redis.port}
        task = "contend" if group.task == "longest" else group.task
        command = [*self.workers[group.language], task, kind, *(f"{key}={value}" for key, value in params.items())]
        with tempfile.TemporaryFile("w+") as errors:
            worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                                      start_new_session=True)
            try:
                output, _ = worker.communicate(timeout=float(params.get("seconds", 0)) + PATIENCE)
            except subprocess.TimeoutExpired:
                output = json.dumps({"failed": f"no answer within {PATIENCE:.0f} s"})
            finally:
                # Whatever a failed peer left running ends with its session.
                try:
                    os.killpg(worker.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                worker.wait()
            errors.seek(0)
            words = errors.read().strip()
        logged = intervals.judge(place) if params.get("logs") else {}
        self.tidy(place)
        lines = output.strip().splitlines()
        # Several processes may fail; the first one's words are the reason.
        # Where the lock was is no part of what failed.
        hide = functools.partial(re.compile(f"{re.escape(str(place))}|{re.escape(str(self.redis.folder if self.redis else place))}").sub, "…")
        lines, words = [hide(line) for line in lines], hide(words)
        answer = next((line for line in lines if '"failed"' in line), lines[0] if len(lines) == 1 else "")
        try:
            return json.loads(answer) | logged
        except ValueError:
            return {"failed": (words or hide(output.strip()) or f"ended with {worker.returncode} and no word")[-1000:]}

    def tidy(self, place: Path) -> None:
        """Removes the files of one turn."""
        for left in place.parent.glob(f"{place.name}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        for left in Path("/dev/shm").glob(f"sem.{self.folder.name}.{place.name}*"):
            left.unlink(missing_ok=True)

    def run(self, groups: Iterable[Group], progress: Callable[[str], None]) -> list[Row]:
        """All rounds of all groups; a row for each group and kind."""
        rows = []
        # Groups that differ in a number alone also take turns, so that what is drawn over that number was measured at the same time.
        for _, family in itertools.groupby(groups, lambda group: (group.task, group.language, group.tag.endswith(("redis", "pinned")))):
            members = list(family)
            told: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for number in range(max(map(self.rounds, members))):
                for group in members:
                    if number < self.rounds(group):
                        self.round(group, number, told, progress)
            rows += [self.row(group, kind, told[group.title, kind]) for group in members for kind in group.kinds]
        return rows

    def rounds(self, group: Group) -> int:
        """How many rounds it has in this run."""
        return group.rounds[0 if self.quick else 1]

    def round(self, group: Group, number: int, told: dict[tuple[str, str], list[dict[str, Any]]], progress: Callable[[str], None]) -> None:
        """A turn for each kind. Who begins changes, so that no kind always runs after the same other."""
        shift = number % len(group.kinds)
        for kind in (*group.kinds[shift:], *group.kinds[:shift]):
            answers = told.setdefault((group.title, kind), [])
            progress(f"{group.title}: {group.language} {kind}, round {number + 1} of {self.rounds(group)}")
            # What cannot be, and what never comes, is not waited for again.
            if not answers or not {"cannot", "never_ms"} & answers[-1].keys():
                answers.append(self.once(group, kind))

    @staticmethod
    def row(group: Group, kind: str, told: list[dict[str, Any]]) -> Row:
        """What all rounds of a kind say together."""
        row: Row = {"task": group.task, "tag": group.tag, "title": group.title, "language": group.language, "kind": kind}
        if "cannot" in told[0]:
            return row | {"cannot": told[0]["cannot"]}
        failed = [one["failed"] for one in told if "failed" in one]
        if failed:
            row |= {"failed": sorted(set(failed)), "failed_rounds": f"{len(failed)} of {len(told)}"}
        good = [figures(one) for one in told if "failed" not in one]
        names = dict.fromkeys(name for one in good for name in one)
        row["figures"] = {name: spread([one[name] for one in good if name in one]) for name in names}
        samples = [sample for one in told for sample in one.get("samples", ())]
        if samples:
            row["all_samples"] = {"count": len(samples), "median_ns": statistics.median(samples), "p99_ns": percentile(samples, 0.99),
                                  "max_ns": max(samples)}
        notes = sorted({note for one in told for note in one.get("notes", ())})
        return row | ({"notes": notes} if notes else {})


class Progress:
    """One line that changes, on a terminal; a line per group elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.step, self.start, self.last = steps, 0, time.monotonic(), ""

    def __call__(self, words: str) -> None:
        self.step += 1
        line = f"[{self.step:>4}/{self.steps}] {time.monotonic() - self.start:4.0f} s  {words}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line[:shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
        elif words.split(":")[0] != self.last:
            self.last = words.split(":")[0]
            print(line, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Leaves the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
