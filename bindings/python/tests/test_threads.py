"""One object in many threads at once. A free-threaded interpreter has nothing else that keeps them apart."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import threading
from collections.abc import Callable

import pytest

from ipcmutex import Closed, InvalidArgument, LockLost, Mutex, NotOwner

THREADS = 8


def in_threads(work: Callable[[int], None]) -> None:
    """Runs it in all threads at once; an exception of any of them is the test's."""
    failures: list[BaseException] = []
    together = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            together.wait()
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has a GIL")
def test_y8_an_import_leaves_the_gil_off() -> None:
    assert not sys._is_gil_enabled()


def test_y8_a_count_is_right(url: str) -> None:
    mutex = Mutex(url)
    rounds = 25 if url.startswith("rpm") else 500
    count = [0]

    def work(number: int) -> None:
        for _ in range(rounds):
            with mutex:
                before = count[0]
                count[0] = before + 1

    in_threads(work)
    assert count[0] == THREADS * rounds


def test_y8_a_hold_is_released_once(url: str) -> None:
    mutex = Mutex(url)
    for _ in range(5 if url.startswith("rpm") else 100):
        hold = mutex.hold()
        released: list[int] = []

        def work(number: int) -> None:
            with contextlib.suppress(NotOwner):
                hold.release()
                released.append(number)

        in_threads(work)
        assert len(released) == 1
        assert mutex.acquire(blocking=False)
        mutex.release()


def test_y8_all_calls_at_once(url: str) -> None:
    mutex = Mutex(url)
    calls: list[Callable[[], object]] = [
        lambda: mutex.acquire(timeout=0.001),
        mutex.release,
        lambda: mutex.hold(timeout=0).release(),
        mutex.locked,
        mutex.status,
        mutex.close,
        mutex.open,
        lambda: repr(mutex),
        mutex.break_lock,
        lambda: mutex.token,
    ]

    def work(number: int) -> None:
        for turn in range(50 if url.startswith("rpm") else 500):
            # Each of these may come too early or too late; nothing else may happen.
            with contextlib.suppress(Closed, InvalidArgument, NotOwner, TimeoutError, LockLost):
                calls[(number * 7 + turn * 3) % len(calls)]()

    in_threads(work)
    with contextlib.suppress(InvalidArgument):
        mutex.open()
    with contextlib.suppress(NotOwner, LockLost):
        mutex.release()
    with mutex.hold(timeout=10) as hold:
        hold.check()
