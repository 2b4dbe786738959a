"""python -m harness --target DIR [--quick] [--only TASK,...]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import bounds, machine, plan, report
from .measure import Bench, Progress
from .servers import Redis

HERE = Path(__file__).parents[1]
CHECKOUT = HERE.parents[1]


def main() -> None:
    """One run: measure, judge, write."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="where the workers were built")
    parser.add_argument("--quick", action="store_true", help="under a minute, for developing")
    parser.add_argument("--only", default="", help="languages or tasks, with commas between")
    parser.add_argument("--results", type=Path, required=True, help="where the JSON goes")
    asked = parser.parse_args()
    only = set(filter(None, asked.only.split(",")))
    groups = [group for group in plan.everything() if not only or only & {group.task, group.language, f"{group.task}:{group.language}"}]
    about = machine.describe()
    redis = Redis()
    about["redis"] = redis.version
    bench = Bench({"c": [str(asked.target / "bench-c")]}, asked.quick, redis)
    progress = Progress(sum(len(group.kinds) * group.rounds[not asked.quick] for group in groups))
    try:
        rows = bench.run(groups, progress)
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


if __name__ == "__main__":
    main()
