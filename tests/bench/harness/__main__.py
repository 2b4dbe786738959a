"""python -m harness --target DIR [--quick] [--only TASK,...]"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import bounds, commands, machine, plan, report
from .measure import Bench, Progress
from .servers import Redis

HERE = Path(__file__).parents[1]


def main() -> None:
    """One run: measure, judge, write."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="where the workers were built")
    parser.add_argument("--quick", action="store_true", help="a few rounds, for developing")
    parser.add_argument("--only", default="", help="languages or tasks, with commas between")
    parser.add_argument("--results", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--readme", type=Path, help="whose section on speed is written anew")
    parser.add_argument("--no-plots", action="store_true")
    asked = parser.parse_args()
    only = set(filter(None, asked.only.split(",")))
    groups = [group for group in plan.everything() if (only & group.names if only else not asked.quick or plan.in_quick(group))]
    if unknown := only.difference({"commands"}, *(group.names for group in plan.everything())):
        parser.error(f"--only: nothing is called {', '.join(sorted(unknown))}")
    about = machine.describe()
    if about["load_before"] > about["cores"] / 2:
        print(f"bench: the machine is busy (load {about['load_before']:.1f}): the figures will be too", file=sys.stderr)
    redis = Redis()
    about["redis"] = redis.version
    about["peers"] = machine.peers(asked.target, HERE)
    workers = {
        "c": [str(asked.target / "bench-c")],
        "rust": [str(asked.target / "bench-rust")],
        "python": [sys.executable, str(HERE / "python" / "worker.py")],
        "node": ["node", str(asked.target / "node" / "worker.mjs")],
    }
    bench = Bench(workers, asked.quick, redis)
    uncounted = False
    progress = Progress(sum(len(group.kinds) * group.rounds[not asked.quick] for group in groups) + (0 if only else 1))
    try:
        rows = bench.run(groups, progress)
        if not only or "commands" in only:
            # Counts, not times: they may run at the same time.
            progress("waiters of Redis, and 1,000 and 10,000 holds renewed" if not asked.quick else "waiters of Redis")
            with ThreadPoolExecutor() as pool:
                counts = [pool.submit(commands.waits, workers, set(workers), 3 if asked.quick else 60)]
                if not asked.quick:
                    counts.append(pool.submit(commands.renewal, workers, 1000, 10))
                    counts.append(pool.submit(commands.renewal, workers, 10_000, 6, 10_000, "10000 redis"))
            for count in counts:
                # All else is measured by now and must not be lost with it.
                if error := count.exception():
                    uncounted = True
                    print(f"\nbench: not counted: {error}", file=sys.stderr)
                else:
                    rows += count.result()
    finally:
        bench.close()
        redis.close()
    progress.done()
    verdicts = bounds.judge(rows)
    print(report.table(rows))
    print(report.bounds_table(verdicts))
    asked.results.mkdir(parents=True, exist_ok=True)
    written = {"machine": about, "quick": asked.quick, "bounds": verdicts, "rows": rows}
    (asked.results / "results.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    if not asked.no_plots:
        from . import plots  # its library is not needed without it

        plots.draw(written, asked.results)
        if asked.readme:
            report.write_readme(asked.readme, asked.results)
        print(f"written: {asked.results}")
    # Times are told and not judged here: they depend on what else runs.
    missed = bounds.missed_counts(verdicts)
    for what in missed:
        print(f"bench: missed: {what}", file=sys.stderr)
    if missed or uncounted:
        sys.exit(1)


if __name__ == "__main__":
    main()
