"""Mutex and Hold as Python's own locks behave, and what API promises beyond them."""

from __future__ import annotations

import copy
import functools
import gc
import math
import pickle
import re
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ipcmutex
from ipcmutex import (
    AcquireTimeout,
    AsyncMutex,
    Closed,
    Hold,
    InvalidArgument,
    IpcMutexError,
    LockLost,
    Mutex,
    NotOwner,
    Unsupported,
)

from .conftest import WATCHDOG, Child


def test_like_threading_lock(url: str) -> None:
    mutex = Mutex(url)
    assert mutex.acquire() is True
    assert mutex.locked()
    assert mutex.acquire(False) is False
    assert mutex.acquire(True, 0.01) is False
    assert mutex.acquire(timeout=0) is False
    assert mutex.release() is None
    while mutex.locked():  # a server may offer it to the waiter that has just given up
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="not acquired") as raised:
        mutex.release()
    assert isinstance(raised.value, NotOwner)
    assert mutex.acquire(blocking=True, timeout=-1)
    thread = threading.Thread(target=mutex.release)  # any thread may
    thread.start()
    thread.join()
    assert not mutex.locked()
    mutex.close()


def test_two_objects_of_one_url_exclude_each_other_and_tokens_rise(url: str) -> None:
    one, two = Mutex(url), Mutex(url)
    with one as first:
        assert isinstance(first, Hold)
        assert first.token == one.token
        assert not two.acquire(False)
        assert two.locked()
        with pytest.raises(AcquireTimeout, match=r"pid \d+") as raised:
            two.hold(timeout=0.01)
        assert isinstance(raised.value, TimeoutError)
        assert raised.value.code == 1
    with two.hold() as second:
        assert second.token > first.token
    with pytest.raises(NotOwner):
        one.token
    one.close()
    two.close()


@pytest.mark.parametrize(
    "timeout", [math.nan, -2, -0.5, -math.inf, -(10**400), 10**400, math.inf, 1e300, threading.TIMEOUT_MAX * 2]
)
def test_bad_timeouts(url: str, timeout: float) -> None:
    mutex = Mutex(url)
    for acquire in mutex.hold, mutex.acquire:
        with pytest.raises(InvalidArgument) as raised:
            acquire(timeout=timeout)
        assert isinstance(raised.value, ValueError)
        assert isinstance(raised.value, OverflowError) == (timeout > threading.TIMEOUT_MAX)
    assert not mutex.locked()


def test_timeouts_that_are_fine(url: str) -> None:
    mutex = Mutex(url)
    for timeout in None, -1, -1.0, 0, 1, threading.TIMEOUT_MAX:
        assert mutex.acquire(timeout=timeout)
        mutex.release()
    with pytest.raises(InvalidArgument):
        mutex.acquire(False, 1)
    with pytest.raises(TypeError):
        mutex.acquire(timeout="1")  # type: ignore[arg-type]
    assert mutex.acquire(False, -1)
    # The longest timeout really waits.
    other = Mutex(url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.acquire, True, threading.TIMEOUT_MAX)
        while mutex.status().waiters == 0:
            time.sleep(0.001)
        mutex.release()
        assert waiting.result()
    other.release()


def test_blocking_is_said_as_threading_lock_takes_it(url: str) -> None:
    mutex = Mutex(url)
    assert mutex.acquire(1) is True
    assert mutex.acquire(0) is False
    assert mutex.acquire(blocking=0) is False
    assert mutex.acquire(1, 0.01) is False
    mutex.release()
    while mutex.locked():  # a server may offer it to the waiter that has just given up
        time.sleep(0.001)
    assert mutex.acquire(blocking=0) is True
    mutex.release()
    with pytest.raises(InvalidArgument):
        mutex.acquire(0, 1)
    # A timeout in its place would be to wait for ever.
    for number, said in (5, "timeout=5"), (0.5, "timeout=0.5"), (-1, "timeout=-1"), (1.0, "timeout=1"):
        with pytest.raises(TypeError, match=rf"(?m){re.escape(said)}$"):
            mutex.acquire(number)  # type: ignore[arg-type]
    for nonsense in None, "1", [], 10**400, 10**5000:
        with pytest.raises(TypeError, match="blocking is True or False.* timeout="):
            mutex.acquire(nonsense)  # type: ignore[arg-type]
    assert not mutex.locked()


def test_open_and_close(url: str) -> None:
    mutex = Mutex(url)
    with pytest.raises(InvalidArgument, match="already opened"):
        mutex.open()
    mutex.acquire()
    other = Mutex(url)
    mutex.close()  # releases
    assert other.acquire(False)
    for call in mutex.close, mutex.acquire, mutex.release, mutex.status, mutex.hold:
        with pytest.raises(Closed, match="not opened"):
            call()
    other.release()
    mutex.open()
    with mutex:
        pass


def test_close_ends_waits(url: str) -> None:
    holder, mutex = Mutex(url), Mutex(url)
    with holder, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mutex.acquire)
        while holder.status().waiters == 0:
            time.sleep(0.001)
        mutex.close()
        with pytest.raises(Closed):
            waiting.result()


def test_y11_a_hold_ends_only_itself(url: str) -> None:
    mutex = Mutex(url)
    first = mutex.hold()
    first.check()
    first.release()
    with pytest.raises(NotOwner):
        first.release()
    with pytest.raises(NotOwner):
        first.check()
    assert not first.lost
    second = mutex.hold()
    with pytest.raises(NotOwner):
        first.release()
    second.check()
    if url.startswith("rpm"):
        second.extend()
        second.extend(5)
    else:
        with pytest.raises(Unsupported):
            second.extend()
    for bad in math.nan, math.inf, -1, 10**400, -(10**400):
        with pytest.raises(InvalidArgument):
            second.extend(bad)
    mutex.release()  # ends it, however it was taken
    with pytest.raises(NotOwner):
        second.release()


def test_loss(url: str) -> None:
    mutex = Mutex(url)
    hold = mutex.hold()
    told: list[IpcMutexError] = []
    heard = threading.Event()
    hold.on_lost(lambda error: (told.append(error), heard.set()))
    with pytest.raises(TypeError):
        hold.on_lost(1)  # type: ignore[arg-type]
    assert mutex.break_lock() is True
    assert heard.wait(10)
    assert isinstance(told[0], LockLost)
    assert hold.lost
    with pytest.raises(LockLost):
        hold.check()
    with pytest.raises(LockLost):
        hold.release()
    assert mutex.status().state == "abandoned"
    assert mutex.break_lock() is False
    with mutex as after:
        assert after.abandoned
        assert after.token > hold.token
    assert len(told) == 1


def test_a_with_block_tells_of_a_loss_but_the_bodys_exception_goes_first(url: str) -> None:
    mutex = Mutex(url)
    with pytest.raises(LockLost):
        with mutex:
            mutex.break_lock()
    with pytest.raises(KeyError) as raised:
        with mutex.hold():
            mutex.break_lock()
            raise KeyError("body")
    assert "its token is stale" in raised.value.__notes__[0]
    with pytest.raises(KeyError):
        with mutex:
            raise KeyError("body")
    assert not mutex.locked()


def test_a_condition_waits_with_it(url: str) -> None:
    """threading.Condition releases and acquires by hand within the block that it was entered by."""
    mutex, other = Mutex(url), Mutex(url)
    condition = threading.Condition(mutex)
    said: list[str] = []

    def player() -> None:
        for turn in "12":
            with condition:
                said.append(f"ping {turn}")
                condition.notify()
                assert condition.wait_for(lambda: f"pong {turn}" in said, WATCHDOG)

    thread = threading.Thread(target=player, daemon=True)
    for turn in "12":
        with condition:
            if turn == "1":
                thread.start()  # it enters when this one waits
            assert condition.wait_for(lambda: f"ping {turn}" in said, WATCHDOG)
            said.append(f"pong {turn}")
            condition.notify()
    thread.join(WATCHDOG)
    assert said == ["ping 1", "pong 1", "ping 2", "pong 2"]
    assert other.acquire(timeout=WATCHDOG)
    other.release()


def test_a_with_block_ends_what_its_thread_acquired_anew_in_it(url: str) -> None:
    mutex, other = Mutex(url), Mutex(url)
    with mutex as first:
        for _ in range(2):
            mutex.release()
            assert other.acquire(False)
            other.release()
            assert mutex.acquire(timeout=WATCHDOG)
        assert mutex.token > first.token
    assert not mutex.locked()
    with pytest.raises(KeyError):
        with mutex:
            mutex.release()
            mutex.acquire()
            raise KeyError("body")
    assert not mutex.locked()
    with mutex:  # one within the other: each ends its own
        mutex.release()
        with mutex:
            mutex.release()
            mutex.acquire()
        assert not mutex.locked()
        mutex.acquire()
    assert not mutex.locked()


def test_a_with_block_ends_nothing_else(url: str) -> None:
    mutex = Mutex(url)
    with pytest.raises(NotOwner):
        with mutex:
            mutex.release()
    with pytest.raises(NotOwner):
        with mutex:
            mutex.release()
            mutex.acquire()
            mutex.release()
    with pytest.raises(NotOwner):
        with mutex:
            mutex.release()
            hold = mutex.hold()
    hold.release()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(NotOwner):
            with mutex:
                mutex.release()
                pool.submit(mutex.acquire).result()
        assert mutex.locked()
        mutex.release()
        with pytest.raises(NotOwner):
            with mutex:
                mutex.release()
                mutex.acquire()
                mutex.release()
                pool.submit(mutex.acquire).result()
        assert mutex.locked()
        mutex.release()


def test_a_with_block_tells_of_a_loss_of_either_hold(url: str) -> None:
    mutex = Mutex(url)
    with pytest.raises(LockLost):
        with mutex:
            mutex.release()
            mutex.acquire()
            mutex.break_lock()
    with pytest.raises(LockLost):
        with mutex:
            mutex.release()
            mutex.acquire()
            mutex.break_lock()
            mutex.acquire()
    mutex.release()
    with pytest.raises(LockLost):
        with mutex:
            mutex.break_lock()
            mutex.acquire()
    mutex.release()
    assert not mutex.locked()


def test_status_is_read_only(url: str) -> None:
    mutex = Mutex(url)
    status = mutex.status()
    assert (status.state, status.waiters, status.held_ms) == ("free", 0, None)
    with mutex as hold:
        status = mutex.status()
        assert (status.state, status.token) == ("held", hold.token)
        assert status.owner_pid and status.owner_host and status.owner_label
        assert status.held_ms is not None and status.held_ms >= 0
    with pytest.raises(AttributeError):
        status.token = 1  # type: ignore[misc]


def test_decorator(url: str) -> None:
    mutex = Mutex(url)

    @mutex
    def held(plus: int) -> bool:
        """Says whether it is held."""
        return mutex.locked()

    assert held(plus=1)
    assert held.__name__ == "held" and held.__doc__
    assert not mutex.locked()

    # These would be made under the lock, and run without it.
    async def coroutine() -> None: ...

    def generator() -> Iterator[None]:
        yield

    async def async_generator() -> AsyncIterator[None]:
        yield

    for function in coroutine, generator, async_generator, functools.partial(generator):
        with pytest.raises(TypeError, match="decorated"):
            mutex(function)
    for function in generator, async_generator:
        with pytest.raises(TypeError, match="decorated"):
            AsyncMutex(url)(function)


def test_repr_says_whether_this_object_holds_it_and_no_secret(url: str) -> None:
    mutex = Mutex(url)
    assert re.fullmatch(r"<unlocked ipcmutex\.Mutex object at 0x[0-9a-f]+>", repr(mutex))
    with mutex:
        assert repr(mutex).startswith("<locked ipcmutex.Mutex object")
        assert repr(Mutex(url)).startswith("<unlocked")
    mutex.close()
    assert repr(mutex).startswith("<unlocked")


def test_weak_references_and_pickles(url: str) -> None:
    mutex = Mutex(url)
    with mutex:
        again = pickle.loads(pickle.dumps(mutex))
        assert type(again) is Mutex and again.url == mutex.url
        assert not again.acquire(False)
        assert not copy.copy(mutex).acquire(False)
    hold = mutex.hold()
    with pytest.raises(TypeError):
        pickle.dumps(hold)
    assert weakref.ref(hold)() is hold
    hold.release()
    reference = weakref.ref(mutex)
    del mutex
    assert reference() is None


def test_a_secret_is_pickled_and_never_shown() -> None:
    assert ipcmutex._ipcmutex.describe("rpm+redis://user:hunter2@localhost/x") == (
        "rpm+redis://user:hunter2@localhost/x",
        "rpm+redis://user:***@localhost/x",
        True,
    )


def test_a_long_url_is_given_whole(tmp_path: Path) -> None:
    url = f"mpm:{tmp_path}/{'d' * 200}/{'l' * 200}"
    (tmp_path / ("d" * 200)).mkdir()
    mutex = Mutex(url)
    assert mutex.url == AsyncMutex(url).url == url
    mutex.close()
    assert mutex.url == url
    with pytest.raises(Closed, match=url):
        mutex.acquire()


def test_y10_what_is_collected_is_released_with_a_warning(url: str) -> None:
    mutex, other = Mutex(url), Mutex(url)
    hold = mutex.hold()
    with pytest.warns(ResourceWarning, match="unreleased hold"):
        del hold
    assert other.acquire(False)
    other.release()
    mutex.acquire()
    with pytest.warns(ResourceWarning, match="unreleased lock"):
        del mutex
    assert other.acquire(False)
    other.release()
    # A hold keeps its mutex alive.
    hold = Mutex(url).hold()
    assert not other.acquire(False)
    hold.release()


def test_what_goes_with_a_callback_may_use_the_hold(mpm: str, child: Callable[..., Child]) -> None:
    code, out, err = child(
        """
        import sys, threading
        from ipcmutex import Mutex, NotOwner
        going, used = threading.Event(), threading.Event()
        def use():
            try:
                hold.on_lost(print)
            except NotOwner:
                print("used")
        class Callback:
            def __call__(self, error): pass
            def __del__(self):
                use()  # in this thread, and in another
                going.set()
                used.wait()
        def other():
            going.wait()
            use()
            used.set()
        hold = Mutex(sys.argv[1]).hold()
        hold.on_lost(Callback())
        thread = threading.Thread(target=other)
        thread.start()
        hold.release()
        thread.join()
        """,
        mpm,
    ).end()
    assert (code, out.split()) == (0, ["used", "used"]), err


def test_a_cycle_through_on_lost_is_collected(url: str) -> None:
    mutex = Mutex(url)
    hold = mutex.hold()
    hold.on_lost(lambda error: print(hold, error))
    reference = weakref.ref(hold)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del hold
        gc.collect()
    # The lambda's closure cell is this function's; it is empty now.
    assert reference() is None
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert not mutex.locked()


def test_y1_other_threads_run_meanwhile(url: str) -> None:
    holder, waiter = Mutex(url), Mutex(url)
    with ThreadPoolExecutor(1) as pool:
        with holder:
            waiting = pool.submit(waiter.acquire)
            while holder.status().waiters == 0:
                time.sleep(0.001)
            # With the interpreter kept by the waiter, not one of these rounds would come to pass.
            assert sum(1 for _ in range(1_000_000)) == 1_000_000
            assert not waiting.done()
        assert waiting.result()
    waiter.release()


def test_threads_exclude_each_other(url: str) -> None:
    mutexes = [Mutex(url) for _ in range(4)]
    total = 0

    def work(mutex: Mutex) -> None:
        nonlocal total
        for _ in range(500):
            with mutex:
                before = total
                if before % 50 == 0:
                    time.sleep(0)
                total = before + 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, mutexes))
    assert total == 2000


def test_every_kind_has_its_class() -> None:
    builtin = {
        "AcquireTimeout": TimeoutError,
        "NotOwner": RuntimeError,
        "InvalidArgument": ValueError,
        "PermissionDenied": PermissionError,
        "Unavailable": ConnectionError,
    }
    codes = {}
    for name in ipcmutex.__all__:
        kind = getattr(ipcmutex, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert kind.__module__ == "ipcmutex" and kind.__doc__
            assert issubclass(kind, IpcMutexError)
            assert issubclass(kind, builtin.get(name, Exception))
            error = pickle.loads(pickle.dumps(kind("text")))
            assert type(error) is kind and str(error) == "text"
            codes[name] = kind.code
    assert codes.pop("IpcMutexError") == 0
    assert codes.pop("TimeoutOverflow") == codes["InvalidArgument"]
    assert sorted(codes.values()) == [*range(1, 7), *range(8, 20)]


def test_bad_urls() -> None:
    for bad in "foo:bar", "spm:", "spm:a b", "mpm:../x":
        with pytest.raises(InvalidArgument):
            Mutex(bad)
    with pytest.raises(TypeError):
        Mutex(None)  # type: ignore[arg-type]
