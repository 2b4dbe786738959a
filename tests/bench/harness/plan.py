"""What is measured: groups of kinds that do the same work, in turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Params = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One task, done by each kind in each round."""

    task: str
    title: str
    language: str
    kinds: tuple[str, ...]
    params: Params = field(default_factory=dict)
    full: Params = field(default_factory=dict)  # what the full run has instead
    rounds: tuple[int, int] = (2, 7)  # quick, full
    tag: str = ""  # tells rows of one task apart: "8", "8 pinned", "8 redis"

    @property
    def names(self) -> set[str]:
        """What it can be asked for by: its language, its task, `redis`, and language:task."""
        words = {self.task, *(["redis"] if "redis" in self.tag.split() else [])}
        return {self.language, *words, *(f"{self.language}:{word}" for word in words)}


C_WORDS = ("ipcmutex", "ipcmutex-strict", "pthread", "robust", "flock", "ofd", "semaphore")
REDIS_C = ("ipcmutex-unix", "ping-unix", "ipcmutex-tcp", "ping-tcp")


def c(pinned: bool) -> list[Group]:
    """libipcmutex.so beside what the C library and the kernel have."""
    pin: Params = {"pin": 1} if pinned else {}
    also = " pinned" if pinned else ""
    groups = [
        Group("pair", "acquire and release, free" + also, "c", (*C_WORDS, "ipcmutex-spm"), {"seconds": 0.04, **pin}, {"seconds": 0.2},
              rounds=(3, 7), tag=also.strip()),
        Group("handover", "hand-over" + also, "c", ("futex", *C_WORDS), {"samples": 60, **pin}, {"samples": 1000}, tag=also.strip()),
    ]
    for n in (2, 4, 8):
        groups.append(Group("contend", f"{n} processes" + also, "c", C_WORDS, {"processes": n, "seconds": 0.06, **pin},
                            {"seconds": 0.2}, tag=f"{n}{also}"))
    groups.append(Group("longest", "8 processes, longest wait" + also, "c", C_WORDS, {"processes": 8, "stamps": 1, "seconds": 0.15, **pin},
                        {"seconds": 0.4}, tag=f"8{also}"))
    if not pinned:
        groups.append(Group("opening", "open to close", "c", C_WORDS, {"seconds": 0.04}, {"seconds": 0.2}))
        groups.append(Group("recovery", "after kill -9 of the owner", "c", C_WORDS, {"samples": 8, "limit_ms": 300},
                            {"samples": 30, "limit_ms": 3000}, rounds=(2, 7)))
    return groups


DECADES = (1, 10, 100, 1000, 10000)


def scale() -> list[Group]:
    """A pair while so many locks are open, and from owner to owner with so many waiters. Peers need a thread for each waiter."""
    groups = [Group("many", f"a pair, locks that are open: {n}", "c", ("ipcmutex", "robust", "flock"), {"locks": n, "seconds": 0.03}, {"seconds": 0.1},
                    rounds=(1, 5 if n < 10000 else 3), tag=str(n)) for n in DECADES]
    groups += [Group("line", f"a thread for each waiter: {n}", "c", ("ipcmutex", "ipcmutex-strict", "robust", "flock", "semaphore"),
                     {"waiters": n, "seconds": 0.05}, {"seconds": 0.2}, rounds=(1, 5), tag=str(n)) for n in DECADES[:-1]]
    groups += [Group("async", f"no thread for each waiter: {n}", "c", ("ipcmutex", "ipcmutex-strict"), {"waiters": n, "seconds": 0.05},
                     {"seconds": 0.2}, rounds=(1, 5), tag=str(n)) for n in DECADES]
    groups.append(Group("async", "1000 waiters in 20 processes", "c", ("ipcmutex", "ipcmutex-strict"),
                        {"waiters": 1000, "processes": 20, "seconds": 0.1}, {"seconds": 0.3}, rounds=(1, 5), tag="1000 in 20"))
    return groups


def redis_c() -> list[Group]:
    """Redis through libipcmutex.so beside two bare round trips."""
    return [
        Group("pair", "acquire and release, free, Redis", "c", REDIS_C, {"seconds": 0.1, "batch": 1}, {"seconds": 0.4}, tag="redis"),
        *(Group("contend", f"{n} processes, Redis", "c", ("ipcmutex-unix", "ipcmutex-tcp"), {"processes": n, "seconds": 0.2, "logs": True},
                {"seconds": 0.5}, rounds=(1, 5), tag=f"{n} redis") for n in (2, 4, 8)),
        Group("opening", "open to close, Redis", "c", ("ipcmutex-unix", "ipcmutex-tcp"), {"seconds": 0.1}, {"seconds": 0.3}, rounds=(1, 5),
              tag="redis"),
        Group("recovery", "after kill -9 of the owner, a lease of 1 s", "c", ("ipcmutex-unix",),
              {"samples": 1, "limit_ms": 3000, "ttl_ms": 1000}, rounds=(1, 5), tag="redis"),
    ]


@dataclass(frozen=True)
class Language:
    """Kinds of one language, by where their lock lives."""

    name: str
    here: tuple[str, ...]
    redis: tuple[str, ...]
    batch: int
    never_ms: int = 2000


LANGUAGES = (
    Language("rust", ("ipcmutex", "fd-lock", "named-lock", "fslock", "parking_lot"), ("ipcmutex-unix", "rslock"), 100),
    Language("python", ("ipcmutex", "threading", "multiprocessing", "filelock", "fasteners", "portalocker"),
             ("ipcmutex-unix", "redis-py", "python-redis-lock"), 20),
    Language("node", ("ipcmutex", "ipcmutex-sync", "async-mutex", "slocket", "live-mutex", "proper-lockfile"),
             ("ipcmutex-unix", "redlock"), 20, never_ms=6500),
)


def language(of: Language) -> list[Group]:
    """A language's locks beside ours in that language."""
    logs: Params = {"logs": True} if of.name == "node" else {}
    groups = []
    for kinds, tag in ((of.here, ""), (of.redis, "redis")):
        also = ", Redis" if tag else ""
        batch = 1 if tag else of.batch
        redis: Params = {"ttl_ms": 1000} if tag else {}
        groups += [
            Group("pair", f"acquire and release, free{also}", of.name, kinds, {"seconds": 0.04, "batch": batch}, {"seconds": 0.2},
                  rounds=(2, 5), tag=tag),
            Group("opening", f"open to close{also}", of.name, kinds, {"seconds": 0.04}, {"seconds": 0.2}, rounds=(1, 5), tag=tag),
            *(Group("contend", f"{n} processes{also}", of.name, kinds,
                    {"processes": n, "seconds": 0.1, "stamps": 1, **({"logs": True} if tag else logs)}, {"seconds": 0.4}, rounds=(1, 5),
                    tag=f"{n} {tag}".strip()) for n in (2, 4, 8)),
            Group("handover", f"hand-over{also}", of.name, kinds, {"samples": 3, "seconds": 0.1}, {"samples": 20, "seconds": 0.5}, rounds=(1, 5),
                  tag=tag),
            Group("recovery", f"after kill -9 of the owner{', a lease of 1 s' if tag else ''}", of.name, kinds,
                  {"samples": 1, "limit_ms": 3000 if tag else 300, **redis}, {"limit_ms": 3000 if tag else of.never_ms}, rounds=(1, 5), tag=tag),
        ]
    return groups


def everything() -> list[Group]:
    """All groups, in the order of the report."""
    return [*c(pinned=False), *scale(), *redis_c(), *(group for one in LANGUAGES for group in language(one)), *c(pinned=True)]


def in_quick(group: Group) -> bool:
    """Whether it is part of the quick run, which has a minute for all."""
    if group.task == "recovery":
        return group.tag != "redis" and group.language in ("c", "node")
    if group.task in ("many", "line", "async"):
        return group.tag in ("1", "1000") or (group.task == "async" and group.tag in ("10", "10000"))
    if group.task == "contend" and not group.tag.startswith("8"):
        return group.language == "c" and group.tag == "2"
    if group.tag.endswith("pinned"):
        return group.task in ("pair", "handover")
    return group.language == "c" or group.task in ("pair", "contend")
