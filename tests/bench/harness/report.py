"""The terminal's tables, the JSON, and the README's section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def time_text(ns: float) -> str:
    """A duration for people."""
    if abs(ns) < 1e3:
        return f"{ns:.0f} ns" if abs(ns) >= 100 else f"{ns:.1f} ns"
    if abs(ns) < 1e6:
        return f"{ns / 1e3:.3g} µs"
    if abs(ns) < 1e9:
        return f"{ns / 1e6:.3g} ms"
    return f"{ns / 1e9:.3g} s"


def figure_text(name: str, value: float) -> str:
    """A figure with its unit."""
    if name.endswith("ns"):
        return time_text(value)
    if name.endswith("per_second"):
        return f"{value / 1e6:.3g} M/s" if value >= 1e6 else f"{value / 1e3:.3g} k/s" if value >= 1e3 else f"{value:.3g} /s"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """Every figure of every kind."""
    lines: list[str] = []
    title = ("", "")
    for row in rows:
        if (row["title"], row["language"]) != title:
            title = (row["title"], row["language"])
            lines.append(f"\n{row['title']}")
        said = f"  {row['language']:<7}{row['kind']:<20}"
        if "cannot" in row:
            lines.append(f"{said}cannot: {row['cannot']}")
            continue
        for name, spread in row["figures"].items():
            if name == "never_ms":
                said += f"never (waited {time_text(spread['max'] * 1e6)})  "
                continue
            said += f"{name} {figure_text(name, spread['median'])} ({figure_text(name, spread['min'])} to " \
                    f"{figure_text(name, spread['max'])})  "
        lines.append(said.rstrip())
        lines += [f"    failed in {row['failed_rounds']} rounds: {words}" for words in row.get("failed", ())]
        lines += [f"    {note}" for note in row.get("notes", ())]
    return "\n".join(lines)


def verdict_text(verdict: dict[str, Any]) -> str:
    """The ratio, or the limited figure itself."""
    if verdict["ratio"] is None:
        return "no figure"
    if verdict.get("unit") == "ns":
        return time_text(verdict["ratio"])
    return f"{verdict['ratio']:.2f}" if "unit" not in verdict else f"{verdict['ratio']:.3g}"


def demanded_text(verdict: dict[str, Any]) -> str:
    """The limit with its unit."""
    if verdict.get("unit") == "ns":
        return f"≤ {time_text(float(verdict['demanded'].split()[1]))}"
    return str(verdict["demanded"])


def bounds_table(verdicts: list[dict[str, Any]]) -> str:
    """Which demands are met."""
    lines = ["", f"{'demanded':<72}{'bound':>10}{'found':>10}{'of best':>10}            (min to max of the rounds)"]
    for verdict in verdicts:
        met = {True: "met", False: "MISSED", None: "no figure"}[verdict["met"]]
        best = f"{verdict['ratio_of_best']:.2f}" if "ratio_of_best" in verdict else ""
        span = "" if verdict["ratio"] is None or "unit" in verdict else f"({verdict['ratio_min']:.2f} to {verdict['ratio_max']:.2f})"
        lines.append(f"{verdict['what']:<72}{demanded_text(verdict):>10}{verdict_text(verdict):>10}{best:>10}  {met:<10}{span}")
    missed = sum(verdict["met"] is not True for verdict in verdicts)
    lines.append(f"{len(verdicts) - missed} of {len(verdicts)} met")
    return "\n".join(lines)


BEGIN, END = "<!-- written by make bench: begin -->", "<!-- written by make bench: end -->"
# What a reader wants to see of each language: (title, task, tag, figure).
SHOWN = (
    ("free pair", "pair", "", "ns"),
    ("8 processes, turns/s", "contend", "8", "per_second"),
    ("longest wait of 8", "longest", "8", "longest_ns"),
    ("hand-over", "handover", "", "median_ns"),
    ("open to close", "opening", "", "ns"),
    ("next owner after kill -9", "recovery", "", "from_kill_ns"),
)
NAMES = {"c": "C", "rust": "Rust", "python": "Python", "node": "Node"}
KINDS = {"ipcmutex-strict": "ipcmutex `fair=strict`", "ipcmutex-spm": "ipcmutex `spm:`", "ipcmutex-sync": "ipcmutex, sync",
         "ipcmutex-unix": "ipcmutex", "robust": "pthread mutex, robust", "pthread": "pthread mutex", "ofd": "OFD lock",
         "semaphore": "POSIX named semaphore", "flock": "flock(2)", "futex": "bare futex", "ping-unix": "two PING", "ipcmutex-tcp": "ipcmutex, TCP",
         "ping-tcp": "two PING, TCP"}


def cell(row: Row | None, figure: str) -> str:
    """A figure in the README, or why there is none."""
    if row is None:
        return ""
    if "cannot" in row:
        return "–"
    if "never_ms" in row["figures"]:
        return "never"
    said = figure_text(figure, row["figures"][figure]["median"]) if figure in row["figures"] else ""
    return f"{said} failed" .strip() if "failed" in row else said


def kinds_table(rows: list[Row], tag: str) -> list[str]:
    """Each kind's medians; `tag` is "" or "redis"."""
    by_key = {(row["task"], row["tag"], row["language"], row["kind"]): row for row in rows}
    lines = ["| | " + " | ".join(title for title, *_ in SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for language, name in NAMES.items():
        for kind in dict.fromkeys(row["kind"] for row in rows if row["language"] == language and row["tag"].endswith(tag)
                                  and (tag or not row["tag"].endswith(("redis", "pinned"))) and row["task"] in ("pair", "handover")):
            cells = []
            for _, task, at, figure in SHOWN:
                tasks = ("contend", "longest") if task == "longest" else (task,)
                found = [by_key.get((one, f"{at} {tag}".strip(), language, kind)) for one in tasks]
                cells.append(cell(next((row for row in reversed(found) if row), None), figure))
            said = f"{name}: {KINDS.get(kind, kind)}"
            lines.append(f"| {f'**{said}**' if kind.startswith('ipcmutex') else said} | " + " | ".join(cells) + " |")
    return lines


def memory_text(rows: list[Row]) -> str:
    """What an open mutex and a waiter take, where the most of them were measured."""
    def most(task: str, kind: str) -> str:
        found = [row for row in rows if row["task"] == task and row["kind"] == kind and row["tag"].isdigit() and "bytes" in row.get("figures", {})]
        best = max(found, key=lambda row: int(row["tag"]), default=None)
        return f"{best['figures']['bytes']['median'] / 1024:.1f} KiB (of {int(best['tag']):,})" if best else "?"

    return f"In C an open mutex takes {most('many', 'ipcmutex')}, a waiter without a thread {most('async', 'ipcmutex')}."


def section(written: dict[str, Any]) -> str:
    """The README's part, between its marks."""
    machine, verdicts, rows = written["machine"], written["bounds"], written["rows"]
    met = sum(verdict["met"] is True for verdict in verdicts)
    lines = [
        BEGIN,
        f"`make bench{' QUICK=1 PUBLISH=1` (few rounds' if written['quick'] else '` (all rounds'}), on {machine['cpu']}{' (virtual)' if machine['virtual'] else ''}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"{machine['when'][:10]}. Medians; all figures with their spread are in [docs/benchmarks](docs/benchmarks/results.json).",
        "",
        *kinds_table(rows, ""),
        "",
        memory_text(rows) + " `–`: it cannot, since it lives in one process. `never`: the death is not noticed. `failed`: its words are in the JSON.",
        "",
        "![turns per second of 2, 4 and 8 processes](docs/benchmarks/contend.svg)",
        "",
        "In Redis (unix socket, lease of 1 s where an owner is killed):",
        "",
        *kinds_table(rows, "redis"),
        "",
        f"What was demanded before it was measured; {met} of {len(verdicts)} are met:",
        "",
        "| | demanded | found | |",
        "|---|---|---|---|",
        *(f"| {verdict['what']} | {demanded_text(verdict)} | {verdict_text(verdict)} | "
          f"{ {True: 'met', False: '**missed**', None: '**no figure**'}[verdict['met']]} |" for verdict in verdicts),
        END,
    ]
    return "\n".join(lines)


def write_readme(readme: Path, results: Path) -> None:
    """Puts the section where the marks are, or in front of what the lock does not fit."""
    text, new = readme.read_text(), section(json.loads((results / "results.json").read_text()))
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        text = head + new + rest.partition(END)[2]
    else:
        mark = "## Where it does not fit"
        if mark not in text:
            raise SystemExit(f"bench: {readme} has neither {BEGIN!r} nor {mark!r}")
        text = text.replace(mark, f"## Speed\n\n{new}\n\n{mark}", 1)
    readme.write_text(text)
