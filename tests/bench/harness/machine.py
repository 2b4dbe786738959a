"""Where the figures come from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any


def first_line(*command: str) -> str:
    """What a program says of its version."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def peers(target: Path, bench: Path) -> dict[str, dict[str, str]]:
    """The versions of what is measured beside, as far as they are there."""
    found: dict[str, dict[str, str]] = {"python": {}, "node": {}, "rust": {}}
    for name in ("fasteners", "filelock", "portalocker", "python-redis-lock", "redis"):
        try:
            found["python"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name in ("async-mutex", "ioredis", "live-mutex", "proper-lockfile", "redlock", "slocket"):
        package = target / "node" / "node_modules" / name / "package.json"
        if package.exists():
            found["node"][name] = json.loads(package.read_text())["version"]
    locked = bench / "rust" / "Cargo.lock"
    for name, version in re.findall(r'^name = "(.+)"\nversion = "(.+)"$', locked.read_text() if locked.exists() else "", re.MULTILINE):
        if name in ("fd-lock", "fslock", "named-lock", "parking_lot", "rslock"):
            found["rust"][name] = version
    return found


def describe() -> dict[str, Any]:
    """The machine and the tools, as they are when a run begins."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": models[0] if models else platform.processor(),
        "virtual": "hypervisor" in cpuinfo,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1),
        "kernel": platform.release().split("-")[0],
        "architecture": platform.machine(),
        "c_library": " ".join(platform.libc_ver()),
        "gcc": first_line("gcc", "--version"),
        "rustc": first_line("rustc", "--version"),
        "python": platform.python_version(),
        "node": first_line("node", "--version"),
        "load_before": os.getloadavg()[0],
        "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
    }
