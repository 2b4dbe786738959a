"""Where the figures come from."""

from __future__ import annotations

import os
import platform
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
