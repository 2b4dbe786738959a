"""maturin's hooks, and before a wheel is built the `ipcmutex` command that goes into it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import maturin
from maturin import *  # noqa: F403  the other hooks are maturin's own

HERE = Path(__file__).parent
SCRIPTS = HERE / "ipcmutex._ipcmutex.data" / "scripts"  # where maturin looks for what goes into bin
COMMAND = HERE.parent / "cli" / "Cargo.toml"


def _build_command() -> None:
    if not COMMAND.exists():
        return  # a source distribution has what the module needs, and no more
    cargo = os.environ.get("CARGO", "cargo")
    profile = os.environ.get("IPCMUTEX_PROFILE", "release")
    asked = [cargo, "build", "--bin", "ipcmutex", "--manifest-path", str(COMMAND), "--profile", profile]
    told = subprocess.run([*asked, "--message-format=json-render-diagnostics"], check=True, stdout=subprocess.PIPE)
    messages = [json.loads(line) for line in told.stdout.splitlines() if line.startswith(b"{")]
    [program] = [message["executable"] for message in messages if message.get("executable")]
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, SCRIPTS / "ipcmutex")


def build_wheel(*args: Any, **kwargs: Any) -> str:
    _build_command()
    return maturin.build_wheel(*args, **kwargs)


def build_editable(*args: Any, **kwargs: Any) -> str:
    _build_command()
    return maturin.build_editable(*args, **kwargs)
