"""The terminal's tables, the JSON, and the README's section."""

from __future__ import annotations

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
    if name == "per_second":
        return f"{value / 1e6:.3g} M/s" if value >= 1e6 else f"{value / 1e3:.3g} k/s" if value >= 1e3 else f"{value:.3g} /s"
    return f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """Every figure of every kind."""
    lines, title = [], ""
    for row in rows:
        if row["title"] != title:
            title = row["title"]
            lines.append(f"\n{title}")
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
    return f"{verdict['ratio']:.2f}"


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
