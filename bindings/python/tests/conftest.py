"""What the tests share: names that no other test uses, and children under a watchdog."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

WATCHDOG = 30  # seconds after which a hang of a child is a failure

SECRET = "c4nary-in-python"  # the server's password: whatever is said is searched for it
os.environ["IPCMUTEX_LOG"] = "trace"  # and all is said, but by children, some of which must be quiet

_count = itertools.count()


@pytest.fixture
def name() -> str:
    return f"python-test-{os.getpid()}-{next(_count)}"


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own: `redis+unix:///socket`."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        if os.environ.get("IPCMUTEX_REQUIRE_REDIS"):
            pytest.fail("no redis-server, and IPCMUTEX_REQUIRE_REDIS is set")
        pytest.skip("no redis-server")
    # Unix sockets have short names.
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", f"{folder}/socket", "--save", "", "--dir", folder]
            + ["--requirepass", SECRET],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        for line in server.stdout:
            if "eady to accept connections" in line:
                break
        yield f"redis+unix://:{SECRET}@{folder}/socket"
        server.kill()
        server.communicate()


@pytest.fixture(params=["spm", "mpm", "rpm"])
def url(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> str:
    """A lock of each engine."""
    match request.param:
        case "spm":
            return f"spm:{name}"
        case "mpm":
            return f"mpm:{tmp_path / 'lock'}"
        case _:
            return f"rpm+{request.getfixturevalue('redis')}?id={name}&ttl=3s"


@pytest.fixture
def mpm(tmp_path: Path) -> str:
    return f"mpm:{tmp_path / 'lock'}"


class Child:
    """A Python process that runs a script."""

    def __init__(self, script: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "IPCMUTEX_LOG"},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        """Its exit code, output and errors."""
        try:
            out, err = self.process.communicate(timeout=WATCHDOG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the child hangs: {out}{err}")
        assert SECRET not in out + err
        return self.process.returncode, out, err


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(script: str, *args: str) -> Child:
        children.append(Child(script, *args))
        return children[-1]

    yield start
    for one in children:
        one.process.kill()
        one.process.wait()
        for pipe in one.process.stdin, one.process.stdout, one.process.stderr:
            assert pipe is not None
            pipe.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that says the secret anywhere has failed."""
    report = yield
    if SECRET in report.capstdout + report.capstderr + report.caplog + str(report.longrepr or ""):
        report.outcome, report.longrepr = "failed", "a secret shows"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs coroutine tests, each in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 120))
    return True
