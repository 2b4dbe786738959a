"""The stubs: what they say is so, and programs that use them are checked strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

TYPED = '''
import asyncio
from collections.abc import Callable
from typing_extensions import assert_type
from ipcmutex import AcquireTimeout, AsyncHold, AsyncMutex, Hold, InvalidArgument, IpcMutexError, Mutex, Status

mutex = Mutex("spm:typed")
assert_type(mutex.acquire(timeout=1), bool)
mutex.release()
with mutex as hold:
    assert_type(hold, Hold)
    assert_type(hold.token, int)
    hold.on_lost(lambda error: print(error.code))
with mutex.hold(timeout=None) as hold:
    hold.check()
assert_type(mutex.status(), Status)
assert_type(mutex.status().owner_pid, int | None)

@mutex
def work(count: int) -> str:
    return str(count)

assert_type(work(1), str)
work("1")  # E: arg-type
mutex.acquire(timeout="1")  # E: arg-type
mutex.status().token = 1  # E: misc
Hold()  # E: allowed by type, refused at run time

async def main() -> None:
    mutex = AsyncMutex("spm:typed")
    async with mutex as hold:
        assert_type(hold, AsyncHold)
    async with mutex.hold(timeout=1) as hold:
        assert_type(hold.abandoned, bool)
    held = await mutex.hold()
    assert_type(held, AsyncHold)
    await held.release()
    assert_type(await mutex.acquire(), bool)
    assert_type(await mutex.locked(), bool)
    await mutex.release()

    @mutex
    async def work(count: int) -> str:
        return str(count)

    assert_type(await work(1), str)
    assert_type(await asyncio.create_task(work(1)), str)

kinds: list[type[IpcMutexError]] = [AcquireTimeout, InvalidArgument]
caught: tuple[type[TimeoutError], type[ValueError]] = (AcquireTimeout, InvalidArgument)
'''


def mypy(folder: Path, *args: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", *args], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ran.returncode, ran.stdout


def test_the_stubs_say_what_is_there(tmp_path: Path) -> None:
    code, told = mypy(tmp_path, "mypy.stubtest", "--concise", "ipcmutex")
    assert code == 0, told


def test_a_program_is_checked_strictly(tmp_path: Path) -> None:
    lines = TYPED.lstrip().splitlines()
    (tmp_path / "typed.py").write_text("\n".join(lines) + "\n")
    code, told = mypy(tmp_path, "mypy", "--strict", "--no-error-summary", "--no-incremental", "typed.py")
    found = [(int(line.split(":")[1]), line.rsplit("[", 1)[-1].rstrip("]")) for line in told.splitlines() if ": error:" in line]
    expected = [(at, line.split("# E: ")[1]) for at, line in enumerate(lines, 1) if "# E: " in line and "allowed" not in line]
    assert code == 1 and found == expected, told
