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
    rounds: tuple[int, int] = (5, 7)  # quick, full
    tag: str = ""  # tells rows of one task apart: "8", "8 pinned", "unix"


C_WORDS = ("ipcmutex", "ipcmutex-strict", "pthread", "robust", "flock", "ofd", "semaphore")
REDIS_C = ("ipcmutex-unix", "ping-unix", "ipcmutex-tcp", "ping-tcp")


def c(pinned: bool) -> list[Group]:
    """libipcmutex.so beside what the C library and the kernel have."""
    pin: Params = {"pin": 1} if pinned else {}
    also = " pinned" if pinned else ""
    groups = [
        Group("pair", "acquire and release, free" + also, "c", (*C_WORDS, "ipcmutex-spm"), {"seconds": 0.04, **pin}, {"seconds": 0.2},
              tag=also.strip()),
        Group("handover", "hand-over" + also, "c", ("futex", *C_WORDS), {"samples": 150, **pin}, {"samples": 1000}, tag=also.strip()),
    ]
    for n in (2, 4, 8):
        groups.append(Group("contend", f"{n} processes" + also, "c", C_WORDS, {"processes": n, "seconds": 0.06, **pin},
                            {"seconds": 0.3}, tag=f"{n}{also}"))
    groups.append(Group("longest", "8 processes, longest wait" + also, "c", C_WORDS, {"processes": 8, "stamps": 1, "seconds": 0.15, **pin},
                        {"seconds": 1.0}, tag=f"8{also}"))
    if not pinned:
        groups.append(Group("opening", "open to close", "c", C_WORDS, {"seconds": 0.04}, {"seconds": 0.2}))
        groups.append(Group("recovery", "after kill -9 of the owner", "c", C_WORDS, {"samples": 8, "limit_ms": 300},
                            {"samples": 30, "limit_ms": 3000}, rounds=(2, 7)))
    return groups


def redis_c() -> list[Group]:
    """Redis through libipcmutex.so beside two bare round trips."""
    return [Group("pair", "acquire and release, free, Redis", "c", REDIS_C, {"seconds": 0.1, "batch": 1}, {"seconds": 0.5}, tag="redis")]


def everything() -> list[Group]:
    """All groups, in the order of the report."""
    return [*c(pinned=False), *redis_c(), *c(pinned=True)]
