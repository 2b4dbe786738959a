"""The plots, drawn by matplotlib as SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .report import figure_text, time_text

Row = dict[str, Any]
OURS, OURS_TOO, PEER, BAD = "#c8102e", "#e8858f", "#5b7c99", "#8a1c1c"
LANGUAGES = {"c": "C", "rust": "Rust", "python": "Python", "node": "Node"}
PEERS = cycler(color=["#1f5a8a", "#2e8b57", "#8a63b0", "#c08a1e", "#4a4a4a", "#3fa7b5"])
plt.rcParams |= {"axes.prop_cycle": PEERS,"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "ipcmutex",
                 "axes.titleweight": "bold", "axes.titlesize": 10, "axes.titlelocation": "left"}


def color(kind: str) -> str:
    """Ours stand out, and our variants from each other."""
    return PEER if not kind.startswith("ipcmutex") else OURS if kind in ("ipcmutex", "ipcmutex-unix") else OURS_TOO


def words(row: Row) -> str:
    """What stands where a bar would be."""
    if "cannot" in row:
        return f"cannot: {row['cannot']}"
    if "never_ms" in row["figures"]:
        return "; ".join([f"never (waited {time_text(row['figures']['never_ms']['max'] * 1e6)})", *row.get("notes", ())[:1]])
    if "failed" in row:
        return f"failed: {row['failed'][0][:70]}"
    return "no figure"


def axis(name: str) -> FuncFormatter:
    """Ticks with units."""
    return FuncFormatter(lambda value, _: figure_text(name, value).replace(".0 ", " "))


def limits(rows: list[Row], figure: str, whisker: str = "") -> tuple[float, float]:
    """One axis for all panels."""
    shown = [row["figures"][figure] for row in rows if figure in row.get("figures", {}) and row["figures"][figure]["median"] > 0]
    far = [spread["max"] for spread in shown] + [row["figures"][whisker]["median"] for row in rows if whisker in row.get("figures", {})]
    low = min((spread["min"] for spread in shown if spread["min"] > 0), default=1) / 1.5
    high = max(far, default=10)
    return low, high * max(4, (high / low) ** 0.33)  # room for the labels


def bars(ax: Axes, rows: list[Row], figure: str, whisker: str, low: float, high: float) -> None:
    """A bar per row with its spread over the rounds, or words."""
    for at, row in enumerate(rows):
        spread = row.get("figures", {}).get(figure)
        if not spread or "never_ms" in row["figures"]:
            ax.text(low * 1.1, at, words(row), va="center", color=BAD, fontsize=8)
            continue
        median = spread["median"]
        if median <= low:  # before the parent was even told of the death
            ax.text(low * 1.1, at, f"{figure_text(figure, median)}: it was in before the death was told", va="center", fontsize=8)
            continue
        ax.barh(at, median, color=color(row["kind"]), height=0.7)
        ends = [max(low, spread["min"]), spread["max"]]
        label = figure_text(figure, median)
        if whisker and whisker in row["figures"]:
            ends = [median, row["figures"][whisker]["median"]]
            label += f"  (99 %: {figure_text(whisker, ends[1])})"
        ax.plot(ends, [at, at], color="#222", linewidth=1)
        if "failed" in row:
            label += f"  failed in {row['failed_rounds']} rounds"
        ax.text(max(ends[1], median) * 1.15, at, label, va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [row["kind"] for row in rows])
    for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_color(OURS if row["kind"].startswith("ipcmutex") else "black")
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_formatter(axis(figure))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)


def lines(ax: Axes, rows: list[Row], figure: str, x_of: Callable[[Row], float], x_words: str) -> None:
    """A line per kind over the number of something, with what is missing in words below."""
    absent = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        points = [(x_of(row), row["figures"][figure]) for row in rows if row["kind"] == kind and figure in row.get("figures", {})]
        points = [point for point in points if point[1]["median"] > 0]
        first = next(row for row in rows if row["kind"] == kind)
        if not points:
            absent.append(f"{kind} {words(first)}")
            continue
        x = [point[0] for point in points]
        y = [point[1]["median"] for point in points]
        ours = kind.startswith("ipcmutex")
        line = ax.errorbar(x, y, yerr=[[one[1]["median"] - one[1]["min"] for one in points], [one[1]["max"] - one[1]["median"] for one in points]],
                           marker="o" if ours else "s", markersize=4, linewidth=2.2 if ours else 1.1, capsize=2, elinewidth=0.6,
                           color=color(kind) if ours else None, zorder=3 if ours else 2, label=kind)
        if any("failed" in row for row in rows if row["kind"] == kind):
            line.set_label(f"{kind} (failed at times)")
    ax.set_xscale("log", base=2 if x_of(rows[0]) < 16 and max(map(x_of, rows)) < 16 else 10)
    ax.set_yscale("log")
    ticks = sorted({x_of(row) for row in rows})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(axis(figure))
    ax.yaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_ylim()
    if high < 300 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.set_xlabel("\n".join([x_words, *(f"{text[:95]}" for text in absent)]))
    ax.grid(alpha=0.25)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def save(figure: Any, results: Path, name: str, title: str, about: str) -> None:
    """One SVG, the same bytes for the same figures."""
    figure.suptitle(f"{title}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.99, -0.02, about, ha="right", va="top", fontsize=6.5, color="#666")
    figure.savefig(results / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def bar_panels(rows: list[Row], results: Path, about: str, name: str, title: str, task: str, tag: str, figure: str, whisker: str = "",
               languages: tuple[str, ...] = tuple(LANGUAGES)) -> None:
    """A panel of bars per language."""
    panels = []
    for language in languages:
        # In C the longest wait is a task of its own; elsewhere each contended run looks at the clock anyway.
        tasks = {task, "contend"} if task == "longest" and language != "c" else {task}
        chosen = [row for row in rows if row["language"] == language and row["task"] in tasks and row["tag"] == tag]
        if chosen:
            panels.append((language, chosen))
    if not panels:
        return
    drawn, axes = plt.subplots(len(panels), 1, figsize=(9, sum(0.26 * len(chosen) + 0.75 for _, chosen in panels) + 0.5), squeeze=False,
                               height_ratios=[len(chosen) + 1.2 for _, chosen in panels], layout="constrained")
    ends = limits([row for _, chosen in panels for row in chosen], figure, whisker)
    for ax, (language, chosen) in zip(axes[:, 0], panels, strict=True):
        bars(ax, chosen, figure, whisker, *ends)
        ax.set_title(LANGUAGES[language])
    save(drawn, results, name, title, about)


def line_panels(rows: list[Row], results: Path, about: str, name: str, title: str, task: str, suffix: str, figure: str) -> None:
    """A panel of lines per language, over 2, 4 and 8 processes."""
    def n(row: Row) -> float:
        return float(row["tag"].split()[0])

    panels = []
    for language in LANGUAGES:
        chosen = [row for row in rows if row["language"] == language and row["task"] == task
                  and row["tag"] in {f"{n} {suffix}".strip() for n in (2, 4, 8)}]
        if chosen:
            panels.append((language, chosen))
    if not panels:
        return
    drawn, axes = plt.subplots((len(panels) + 1) // 2, 2, figsize=(11, 3.4 * ((len(panels) + 1) // 2) + 0.4), squeeze=False, layout="constrained")
    for ax, (language, chosen) in zip(axes.flat, panels, strict=False):
        lines(ax, chosen, figure, n, "processes")
        ax.set_title(LANGUAGES[language])
    for ax in list(axes.flat)[len(panels):]:
        ax.set_visible(False)
    save(drawn, results, name, title, about)


def scale_panels(rows: list[Row], results: Path, about: str) -> None:
    """Cost over the number of open locks and of waiters."""
    def n(row: Row) -> float:
        return float(row["tag"])

    panels = [("a pair on one of n open locks", "many", "ns", "open locks"), ("a pair, each of n open locks in turn", "many", "each_ns", "open locks"),
              ("owner to owner, a thread for each waiter", "line", "ns", "waiters"),
              ("owner to owner, no thread for each waiter", "async", "ns", "waiters")]
    if not any(row["task"] == "many" for row in rows):
        return
    drawn, axes = plt.subplots(2, 2, figsize=(11, 7.2), layout="constrained")
    for ax, (title, task, figure, x_words) in zip(axes.flat, panels, strict=True):
        chosen = [row for row in rows if row["task"] == task and row["tag"].isdigit()]
        if chosen:
            lines(ax, chosen, figure, n, x_words)
        ax.set_title(title)
    save(drawn, results, "scale", "Many locks, many waiters (C)", about)


def draw(written: dict[str, Any], results: Path) -> None:
    """All plots of a run."""
    rows, machine = written["rows"], written["machine"]
    about = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, {machine['when']}. Medians; whiskers: least to most of the rounds"
    for tag, more in (("", ""), ("redis", ", Redis on a unix socket")):
        name = f"-{tag}" if tag else ""
        bar_panels(rows, results, about, f"pair{name}", f"Acquire and release, nobody else wants it{more}", "pair", tag, "ns")
        bar_panels(rows, results, about, f"opening{name}", f"Open, acquire, release, close{more}", "opening", tag, "ns")
        bar_panels(rows, results, about, f"handover{name}", f"Hand-over: release in one process to entry in the next{more}", "handover", tag,
                   "median_ns", "p99_ns")
        bar_panels(rows, results, about, f"recovery{name}", f"kill -9 of the owner to the next owner{', a lease of 1 s' if tag else ''}",
                   "recovery", tag, "from_kill_ns")
        bar_panels(rows, results, about, f"longest{name}", f"Longest wait of 8 processes{more}", "longest", f"8 {tag}".strip(), "longest_ns")
        line_panels(rows, results, about, f"contend{name}", f"Processes that want it all the time: turns per second{more}", "contend", tag,
                    "per_second")
    scale_panels(rows, results, about)
    waits = next((row["title"] for row in rows if row["task"] == "commands"), "")
    bar_panels(rows, results, about, "commands-redis", f"Commands that reach the server from {waits}", "commands", "redis", "commands")
    bar_panels(rows, results, about, "pair-pinned", "Acquire and release, pinned to a CPU", "pair", "pinned", "ns")
    bar_panels(rows, results, about, "handover-pinned", "Hand-over, each process pinned to a CPU", "handover", "pinned", "median_ns", "p99_ns")
    line_panels(rows, results, about, "contend-pinned", "Turns per second, each process pinned to a CPU", "contend", "pinned", "per_second")
