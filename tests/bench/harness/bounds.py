"""The figures that are demanded, each as a ratio to a peer of the same run, or as a plain limit."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str, str]  # task, tag, language, kind


@dataclass(frozen=True)
class Bound:
    """`ours` over `peer` (or the other way around) must not be more, or not be less, than `limit`."""

    what: str
    ours: Key
    figure: str
    limit: float
    peer: Key | None = None
    peer_figure: str = ""
    least: bool = False  # the ratio must be at least the limit
    faster: bool = False  # the ratio is peer / ours: how many times faster
    unit: str = ""  # of a plain limit
    counted: bool = False  # not a time, so that a busy machine is no reason to miss it


def c_bounds(also: str) -> list[Bound]:
    """Those for C; `also` is what the tags end with (pinned runs are compared with pinned runs alone)."""
    def key(task: str, tag: str, kind: str) -> Key:
        return (task, f"{tag}{also}".strip(), "c", kind)

    said = f" ({also.strip()})" if also else ""
    found = [
        Bound(f"free pair / robust mutex{said}", key("pair", "", "ipcmutex"), "ns", 1.6, key("pair", "", "robust")),
        Bound(f"free pair, times faster than flock(2){said}", key("pair", "", "ipcmutex"), "ns", 10, key("pair", "", "flock"), least=True,
              faster=True),
    ]
    for n in ("2", "4", "8"):
        ours = key("contend", n, "ipcmutex")
        found += [
            Bound(f"{n} processes, throughput / flock(2){said}", ours, "per_second", 5, key("contend", n, "flock"), least=True),
            Bound(f"{n} processes, throughput / robust mutex{said}", ours, "per_second", 0.5, key("contend", n, "robust"), least=True),
        ]
    strict = key("handover", "", "ipcmutex-strict")
    return [
        *found,
        Bound(f"hand-over, strict / futex wake, one way{said}", strict, "median_ns", 1.5, key("handover", "", "futex")),
        Bound(f"hand-over, strict, 99th percentile / median{said}", strict, "all p99_ns", 5, strict, "all median_ns"),
        Bound(f"longest wait of 8 processes, times shorter than flock(2){said}", key("longest", "8", "ipcmutex"), "longest_ns", 20,
              key("longest", "8", "flock"), least=True, faster=True),
    ]


def scale_bounds() -> list[Bound]:
    """What must not grow. Half as much again is within what the machine itself varies."""
    return [
        Bound("a pair with 10,000 open locks / with one", ("many", "10000", "c", "ipcmutex"), "ns", 1.5, ("many", "1", "c", "ipcmutex")),
        Bound("from owner to owner, 10,000 waiters / 10, strict", ("async", "10000", "c", "ipcmutex-strict"), "ns", 1.5,
              ("async", "10", "c", "ipcmutex-strict")),
        Bound("from owner to owner, 1,000 waiting threads / 10, strict", ("line", "1000", "c", "ipcmutex-strict"), "ns", 1.5,
              ("line", "10", "c", "ipcmutex-strict")),
        Bound("Redis, commands of a waiter of 60 s", ("commands", "redis", "c", "ipcmutex-unix"), "commands", 10, unit="commands", counted=True),
        Bound("Redis, 1,000 renewals, reads of the server / those the bytes need", ("renewal", "redis", "c", "ipcmutex-unix"),
              "reads_over_needed", 2, unit="times", counted=True),
        Bound("Redis, connections of a process with 10,000 holds", ("renewal", "10000 redis", "c", "ipcmutex-unix"), "connections", 3, unit="connections", counted=True),
        Bound("Redis, share of a core of 10,000 holds with ttl=10s", ("renewal", "10000 redis", "c", "ipcmutex-unix"), "percent_of_a_core", 2,
              unit="percent"),
    ]


REDIS_PEERS = (("python", "redis-py"), ("python", "python-redis-lock"), ("node", "redlock"))


def redis_bounds() -> list[Bound]:
    """Those for Redis but the free pair in C. A peer is compared with ours in its own language."""
    found = [
        Bound(f"Redis, {language}, free pair, times faster than {peer}", ("pair", "redis", language, "ipcmutex-unix"), "ns", 4,
              ("pair", "redis", language, peer), least=True, faster=True)
        for language, peer in REDIS_PEERS
    ]
    for wire in ("unix", "tcp"):
        ours = ("contend", "8 redis", "c", f"ipcmutex-{wire}")
        # Two PING are two round trips.
        found += [
            Bound(f"Redis, 8 processes, hand-over / two PING, {wire}", ours, "handover_ns", 1.25, ("pair", "redis", "c", f"ping-{wire}"), "ns"),
            Bound(f"Redis, 8 processes, overtaken by a later one, {wire}", ours, "overtaken", 0, unit="times"),
        ]
    # Turns, most of which a lock that is polled for gives to whoever had the last one, and those that went to one who waited.
    return found + [
        Bound(f"Redis, {language}, 8 processes, {what} / {peer}", ("contend", "8 redis", language, "ipcmutex-unix"), figure, 5,
              ("contend", "8 redis", language, peer), least=True)
        for what, figure in (("throughput", "per_second"), ("hand-overs per second", "handovers_per_second"))
        for language, peer in REDIS_PEERS
    ]


def demanded() -> list[Bound]:
    """All, in the order of the report."""
    opening, recovery = ("opening", "", "c"), ("recovery", "", "c")
    return [
        *c_bounds(""),
        Bound("open, acquire, release, close / open, flock, close", (*opening, "ipcmutex"), "ns", 8, (*opening, "flock")),
        Bound("next owner after kill -9, median", (*recovery, "ipcmutex"), "median_ns", 1e6, unit="ns"),
        Bound("next owner after kill -9, 99th percentile", (*recovery, "ipcmutex"), "all p99_ns", 1e7, unit="ns"),
        *(Bound(f"Redis, free pair / two PING, {wire}", ("pair", "redis", "c", f"ipcmutex-{wire}"), "ns", 1.5,
                ("pair", "redis", "c", f"ping-{wire}")) for wire in ("unix", "tcp")),
        *scale_bounds(),
        *redis_bounds(),
        Bound("Python, free pair / multiprocessing.Lock", ("pair", "", "python", "ipcmutex"), "ns", 3,
              ("pair", "", "python", "multiprocessing")),
        Bound("Python, free pair, times faster than filelock", ("pair", "", "python", "ipcmutex"), "ns", 100,
              ("pair", "", "python", "filelock"), least=True, faster=True),
        # Demanded is 1 µs and 6 µs where the machine does a robust mutex pair in 30 ns, so on any machine this many such pairs.
        Bound("Node, free pair, sync / robust mutex in C", ("pair", "", "node", "ipcmutex-sync"), "ns", 33.3, ("pair", "", "c", "robust")),
        Bound("Node, free pair, awaited / robust mutex in C", ("pair", "", "node", "ipcmutex"), "ns", 200, ("pair", "", "c", "robust")),
        Bound("Node, free pair, awaited, times faster than slocket", ("pair", "", "node", "ipcmutex"), "ns", 40,
              ("pair", "", "node", "slocket"), least=True, faster=True),
        *c_bounds(" pinned"),
    ]


def rounds(row: Row | None, figure: str) -> list[float]:
    """The figure's values, round by round, or of the samples of all rounds together; none if the row has failed."""
    if not row or "cannot" in row or "failed" in row:
        return []
    if figure.startswith("all "):
        return [row["all_samples"][figure.removeprefix("all ")]] if "all_samples" in row else []
    return list(row["figures"].get(figure, {}).get("rounds", []))


def missed_counts(verdicts: list[dict[str, Any]]) -> list[str]:
    """The demands on counts that are not met, or of which nothing was counted."""
    counted = {bound.what for bound in demanded() if bound.counted}
    return [verdict["what"] for verdict in verdicts if verdict["what"] in counted and verdict["met"] is not True]


def judge(rows: list[Row]) -> list[dict[str, Any]]:
    """Each bound with its figures and whether it is met. Ratios are taken within a round, then the median of them."""
    by_key = {(row["task"], row["tag"], row["language"], row["kind"]): row for row in rows}
    found = []
    for bound in demanded():
        if bound.ours not in by_key:
            continue  # not part of this run
        ours = rounds(by_key[bound.ours], bound.figure)
        verdict: dict[str, Any] = {"what": bound.what, "demanded": f"{'≥' if bound.least else '≤'} {bound.limit:.4g}",
                                   "ours": statistics.median(ours) if ours else None}
        values = ours
        if bound.peer:
            peer = rounds(by_key.get(bound.peer), bound.peer_figure or bound.figure)
            verdict["peer"] = statistics.median(peer) if peer else None
            # Groups of different languages have different numbers of rounds.
            pairs = list(zip(ours, peer, strict=False))
            values = [theirs / mine if bound.faster else mine / theirs for mine, theirs in pairs if mine and theirs]
        else:
            verdict["unit"] = bound.unit
        if values:
            ratio = statistics.median(values)
            if bound.peer and ours and peer:
                # Less disturbed by what else ran: each one's best round.
                best = min if not bound.figure.endswith("per_second") else max
                verdict["ratio_of_best"] = best(peer) / best(ours) if bound.faster else best(ours) / best(peer)
            verdict |= {"ratio": ratio, "ratio_min": min(values), "ratio_max": max(values),
                        "met": ratio >= bound.limit if bound.least else ratio <= bound.limit}
        else:
            verdict |= {"ratio": None, "met": None}
        found.append(verdict)
    return found
