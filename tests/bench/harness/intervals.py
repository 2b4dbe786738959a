"""What the entries of contending processes tell: whether they exclude each other, how long a hand-over takes, and the order."""

from __future__ import annotations

import array
import itertools
import statistics
from pathlib import Path
from typing import Any

# Who asked more than so much earlier, and came in later, was overtaken. Less may be the scheduler between the look at the clock and
# the call.
APART_NS = 5_000_000


def read(place: Path) -> list[tuple[int, int, int, int]]:
    """Of all processes (enter, exit, request, process), in the order of entering."""
    entries = []
    for process, path in enumerate(sorted(place.parent.glob(f"{place.name}.log.*"))):
        written = path.read_bytes()
        stamps = array.array("q", written[: len(written) // 8 * 8])  # its writer may have been killed
        entries += [(stamps[at + 1], stamps[at + 2], stamps[at], process) for at in range(0, len(stamps) - 2, 3)]
    return sorted(entries)


def judge(place: Path) -> dict[str, Any]:
    """The figures, or the words of what failed."""
    entries = read(place)
    handovers, overtaken = [], 0
    latest_request = 0
    for one, next_ in itertools.pairwise(entries):
        if next_[0] < one[1]:
            return {"failed": f"not exclusive: process {next_[3]} entered {one[1] - next_[0]} ns before process {one[3]} left"}
        # Handed over: the next one is another process, and waited already.
        if next_[3] != one[3] and next_[2] < one[1]:
            handovers.append(next_[0] - one[1])
    for enter in entries:
        overtaken += enter[2] < latest_request - APART_NS
        latest_request = max(latest_request, enter[2])
    found: dict[str, Any] = {"overtaken": overtaken, "logged": len(entries)}
    if handovers:
        found["handover_ns"] = statistics.median(handovers)
    if len(entries) > 1:
        found["handovers_per_second"] = len(handovers) * 1e9 / (entries[-1][0] - entries[0][0])
    return {"figures": found}
