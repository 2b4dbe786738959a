"""python -m harness.smoke: the harness works, and a lock that is none is found out in every language. No figure is judged."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import bounds, report
from .measure import Bench, Row
from .plan import Group
from .servers import Redis

CHECKOUT = Path(__file__).parents[3]
KINDS = {"c": ("ipcmutex", "flock", "none"), "python": ("ipcmutex", "none"), "node": ("ipcmutex", "none")}


def groups() -> list[Group]:
    """Each task where it can be wrong, as short as it can be."""
    found = [Group("contend", "redis", "c", ("ipcmutex-unix",), {"processes": 2, "seconds": 0.1, "logs": True}, rounds=(1, 1), tag="redis")]
    for language, kinds in KINDS.items():
        logs = {"logs": True} if language == "node" else {}
        found += [
            Group("pair", "pair", language, kinds[:-1], {"seconds": 0.02, "batch": 1}, rounds=(2, 2)),
            Group("contend", "contend", language, kinds, {"processes": 4, "seconds": 0.2, "stamps": 1, **logs}, rounds=(1, 1), tag="4"),
            Group("handover", "handover", language, kinds, {"samples": 3, "seconds": 5}, rounds=(1, 1)),
            Group("recovery", "recovery", language, kinds, {"samples": 1, "limit_ms": 20000}, rounds=(1, 1)),
        ]
    return [*found, Group("many", "many", "c", KINDS["c"][:-1], {"locks": 10, "seconds": 0.01}, rounds=(1, 1), tag="10"),
            Group("line", "line", "c", KINDS["c"], {"waiters": 4, "seconds": 0.05}, rounds=(1, 1), tag="4"),
            Group("async", "async", "c", KINDS["c"][:1], {"waiters": 4, "seconds": 0.05}, rounds=(1, 1), tag="4")]


def wrong(row: Row) -> str:
    """What is not as it must be, or nothing."""
    failed = row.get("failed", [])
    if row["kind"] == "none":
        return "" if failed and all("not exclusive" in words for words in failed) else f"a lock that is none was not found out: {row}"
    if failed or "cannot" in row or "never_ms" in row["figures"] or not row["figures"]:
        return f"no figure: {row}"
    return ""


def main() -> None:
    """Ends with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--c", required=True)
    parser.add_argument("--node", required=True, help="the folder with worker.mjs")
    asked = parser.parse_args()
    workers = {"c": [asked.c], "python": [sys.executable, str(CHECKOUT / "tests/bench/python/worker.py")],
               "node": ["node", f"{asked.node}/worker.mjs"]}
    redis = Redis()
    bench = Bench(workers, quick=True, redis=redis)
    try:
        rows = bench.run(groups(), lambda _: None)
    finally:
        bench.close()
        redis.close()
    complaints = [complaint for complaint in map(wrong, rows) if complaint]
    # Judged and shown like a run.
    report.table(rows)
    report.bounds_table(bounds.judge(rows))
    results = CHECKOUT / "docs/benchmarks/results.json"
    checks = len(rows)
    if results.exists():
        checks += 1
        if report.section(json.loads(results.read_text())) not in (CHECKOUT / "README.md").read_text():
            complaints.append("README.md does not say what docs/benchmarks/results.json says: make bench writes both")
    for complaint in complaints:
        print(f"bench-smoke: {complaint}", file=sys.stderr)
    print(f"bench-smoke: {checks - len(complaints)} passed, {len(complaints)} failed")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
