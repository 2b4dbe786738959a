"""maturin's hooks, and what they do not know: the `ipcmutex` command, which travels with the module."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import maturin
from maturin import *  # noqa: F403  the other hooks are maturin's own

HERE = Path(__file__).parent
SCRIPTS = HERE / "ipcmutex._ipcmutex.data" / "scripts"  # where maturin looks for what goes into bin
IN_SDIST = Path("bindings", "cli")
# A source distribution has this file at its top.
COMMAND = next(folder for folder in (HERE.parent / "cli", HERE / IN_SDIST) if folder.exists())


def _build_command() -> None:
    """IPCMUTEX_PROFILE names the cargo profile; IPCMUTEX_GLIBC=2.17 links with zig, for systems as old as that."""
    build = [os.environ.get("CARGO", "cargo"), "build"]
    if glibc := os.environ.get("IPCMUTEX_GLIBC"):
        compiler = subprocess.run(["rustc", "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout
        [host] = [line.removeprefix("host: ") for line in compiler.splitlines() if line.startswith("host: ")]
        build = ["cargo-zigbuild", "zigbuild", "--target", f"{host}.{glibc}"]
    profile = os.environ.get("IPCMUTEX_PROFILE", "release")
    asked = [*build, "--bin", "ipcmutex", "--manifest-path", str(COMMAND / "Cargo.toml"), "--profile", profile]
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


def build_sdist(directory: str, *args: Any, **kwargs: Any) -> str:
    """maturin packs the crates that the module depends on. The command is none of them, and is added."""
    name: str = maturin.build_sdist(directory, *args, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(Path(directory, name), folder)
        [top] = Path(folder).iterdir()
        workspace = top / "Cargo.toml"
        before, members, after = workspace.read_text().partition('"bindings/python"]')
        if not members:
            raise RuntimeError(f"maturin wrote another Cargo.toml than expected:\n{before}")
        workspace.write_text(f'{before}"bindings/python", "{IN_SDIST}"]{after}')
        shutil.copytree(COMMAND, top / IN_SDIST)
        shutil.make_archive(str(Path(directory, name.removesuffix(".tar.gz"))), "gztar", folder, top.name)
    return name
