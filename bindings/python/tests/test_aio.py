"""AsyncMutex: nothing blocks the loop, cancellation leaves the line, a release always completes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import pickle
import random
import re
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ipcmutex import (
    AcquireTimeout,
    AsyncHold,
    AsyncMutex,
    Closed,
    Hold,
    InvalidArgument,
    IpcMutexError,
    LockLost,
    Mutex,
    NotOwner,
    _aio,
)

from .conftest import SECRET, Child


async def lined_up(mutex: AsyncMutex, waiters: int) -> None:
    while (await mutex.status()).waiters != waiters:
        await asyncio.sleep(0)


async def test_use(url: str) -> None:
    mutex, other = AsyncMutex(url), AsyncMutex(url)
    assert await mutex.acquire() is True
    assert await mutex.locked()
    assert await other.acquire(False) is False
    assert await other.acquire(timeout=0.01) is False
    assert await mutex.release() is None
    async with mutex as hold:
        assert isinstance(hold, AsyncHold)
        assert hold.token == mutex.token
        hold.check()
        with pytest.raises(AcquireTimeout):
            await other.hold(timeout=0)
    async with other.hold(timeout=1) as hold:
        assert not hold.abandoned and not hold.lost
    held = await other.hold()
    await held.release()
    with pytest.raises(NotOwner):
        await held.release()
    with pytest.raises(NotOwner, match="not acquired"):
        await mutex.release()
    held = await other.hold()
    held.release()  # under way at once, awaited or not; over a server that takes its time
    assert await mutex.acquire(timeout=20)
    await mutex.release()
    assert not await mutex.locked()

    @mutex
    async def locked() -> bool:
        return await other.locked()

    assert await locked()
    await mutex.close()
    with pytest.raises(Closed, match="not opened"):
        await mutex.acquire()
    with pytest.raises(Closed):
        await mutex.close()
    await mutex.open()
    with pytest.raises(InvalidArgument, match="already opened"):
        await mutex.open()
    assert await mutex.break_lock() is False


async def test_bad_arguments(url: str) -> None:
    with pytest.raises(InvalidArgument):
        AsyncMutex("foo:bar")
    mutex = AsyncMutex(url)
    for bad in float("nan"), -2, threading.TIMEOUT_MAX * 2:
        with pytest.raises(InvalidArgument):
            await mutex.acquire(timeout=bad)
        with pytest.raises(InvalidArgument):
            await mutex.hold(timeout=bad)
    with pytest.raises(InvalidArgument):
        await mutex.acquire(False, 1)
    async with mutex as hold:
        for bad in float("nan"), 10**400:
            with pytest.raises(InvalidArgument):
                await hold.extend(bad)
        assert await mutex.acquire(0) is False
        assert await mutex.acquire(blocking=0) is False
        with pytest.raises(TypeError, match="(?m)timeout=5$"):
            await mutex.acquire(5)  # type: ignore[arg-type]


async def test_tasks_are_served_one_after_another(url: str) -> None:
    mutex = AsyncMutex(url)
    order: list[int] = []
    inside = 0

    async def work(turn: int) -> None:
        nonlocal inside
        async with mutex:
            inside += 1
            assert inside == 1
            order.append(turn)
            await asyncio.sleep(0)
            inside -= 1

    async with mutex:
        tasks = []
        for turn in range(10):
            tasks.append(asyncio.create_task(work(turn)))
            await lined_up(mutex, turn + 1)
    await asyncio.gather(*tasks)
    assert order == list(range(10))


async def test_y9_a_thousand_waiters_cost_no_thread_each(url: str) -> None:
    def native() -> int:  # those of the library, of which Python knows nothing, included
        return len(os.listdir("/proc/self/task"))

    mutex = AsyncMutex(url)
    before = threading.active_count(), native()
    await mutex.acquire()
    tasks = [asyncio.create_task(mutex.acquire()) for _ in range(1000)]
    await lined_up(mutex, 1000)
    assert threading.active_count() == before[0]
    assert native() <= before[1] + 12, "a few serve them all"
    for task in tasks:
        await mutex.release()
        assert await task
    await mutex.release()


async def test_y9_cancelled_acquires_leave_the_line(url: str) -> None:
    mutex = AsyncMutex(url)
    async with mutex:
        for wait in mutex.acquire(), mutex.__aenter__(), mutex.hold().__aenter__():
            task = asyncio.ensure_future(wait)
            await lined_up(mutex, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await lined_up(mutex, 0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(mutex.acquire(), 0.01)
        await lined_up(mutex, 0)  # else the release below may still find it there
    assert await mutex.acquire(False)
    await mutex.release()


async def test_y9_cancellations_that_race_with_grants_leave_nothing_held(url: str) -> None:
    mutex = AsyncMutex(url)
    granted = cancelled = 0
    for round in range(2000 if url.startswith("rpm") else 4000):  # 10,000 in all
        await mutex.acquire()
        task = asyncio.create_task(mutex.acquire())
        await lined_up(mutex, 1)
        if round % 4:
            await mutex.release()
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            if round % 4 == 2:
                # The grant has come, or is being told.
                await asyncio.sleep(random.uniform(0, 2e-4))
            task.cancel()
        else:
            task.cancel()
            await mutex.release()
        try:
            await task
            granted += 1
            await mutex.release()
        except asyncio.CancelledError:
            cancelled += 1
    assert granted and cancelled
    assert await mutex.acquire(timeout=10)
    await mutex.release()


def test_y9_a_grant_on_its_way_to_a_cancelled_waiter_does_not_wait_for_the_loop(mpm: str) -> None:
    here, coming, go_on = threading.get_ident(), threading.Event(), threading.Event()

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
            if threading.get_ident() != here:
                coming.set()
                assert go_on.wait(60)
            return super().call_soon_threadsafe(*args, **kwargs)

    mutex, other = AsyncMutex(mpm), Mutex(mpm)
    held = other.hold()

    async def cancel_late() -> None:
        waiter = asyncio.ensure_future(mutex.acquire())
        await lined_up(mutex, 1)
        held.release()
        assert coming.wait(60)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    loop = Loop()
    try:
        loop.run_until_complete(cancel_late())
        # The loop rests, and may for ever.
        assert other.acquire(timeout=10)
        other.release()
    finally:
        go_on.set()
        loop.close()


async def test_a_timeout_counts_while_the_server_is_slow_to_be_reached(redis: str, name: str) -> None:
    server = redis.partition("@")[2]
    gate = os.path.join(os.path.dirname(server), name)
    async with AsyncMutex(f"rpm+{redis}?id={name}"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(gate)
            listener.listen()
            mutex = AsyncMutex(f"rpm+{redis.replace(server, gate)}?id={name}&connect_timeout=20s")
            unanswered, _ = listener.accept()
            os.unlink(gate)
            os.symlink(server, gate)
            asyncio.get_running_loop().call_later(3, unanswered.close)  # then it is opened over the gate
            begun = time.monotonic()
            assert not await mutex.acquire(timeout=3)
            assert time.monotonic() - begun < 5
            os.unlink(gate)
    await mutex.close()


@contextlib.contextmanager
def opening(redis: str, name: str) -> Iterator[tuple[AsyncMutex, socket.socket, socket.socket, str, str]]:
    """A mutex that opens at a gate that lets it in and says nothing: with who listens there, its connection, the gate and the server."""
    server = redis.partition("@")[2]
    gate = os.path.join(os.path.dirname(server), name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(gate)
        listener.listen()
        mutex = AsyncMutex(f"rpm+{redis.replace(server, gate)}?id={name}&connect_timeout=20s")
        yield mutex, listener, listener.accept()[0], gate, server
    os.unlink(gate)


async def test_a_timeout_does_not_wait_for_an_opening_which_goes_on(redis: str, name: str) -> None:
    with opening(redis, name) as (mutex, listener, unanswered, gate, server):
        begun = time.monotonic()
        assert not await mutex.acquire(timeout=0.1)
        with pytest.raises(AcquireTimeout, match="not acquired within 0.100 s: .*not opened yet"):
            await mutex.hold(timeout=0.1)
        assert time.monotonic() - begun < 10
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # it was not begun anew
        os.unlink(gate)
        os.symlink(server, gate)
        unanswered.close()
        assert await mutex.acquire(timeout=20)
        await mutex.release()
        await mutex.close()


async def test_why_an_opening_failed_that_was_given_up_is_told_to_nobody_later(redis: str, name: str) -> None:
    with opening(redis, name) as (mutex, listener, unanswered, gate, server):
        assert not await mutex.acquire(timeout=0.1)
        os.unlink(gate)
        unanswered.close()
        assert mutex._opening is not None
        while not mutex._opening.outcome.done():  # nobody is there
            await asyncio.sleep(0.01)
        os.symlink(server, gate)
        assert await mutex.acquire(timeout=20)
        await mutex.release()
        await mutex.close()


async def test_y9_a_cancelled_release_completes(url: str) -> None:
    mutex = AsyncMutex(url)
    await mutex.acquire()
    task = asyncio.ensure_future(mutex.release())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await mutex.locked():  # it goes on by itself
        await asyncio.sleep(0)


def test_a_release_begins_outside_of_a_loop(url: str) -> None:
    mutex = AsyncMutex(url)

    async def take() -> AsyncHold:
        return await mutex.hold(timeout=10)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(loop.run_until_complete(take()).release())
    loop.run_until_complete(take()).release()
    loop.run_until_complete(loop.run_until_complete(take()).release())
    loop.run_until_complete(mutex.close())
    loop.close()


async def test_the_loop_runs_while_a_thread_holds(url: str) -> None:
    mutex, other = AsyncMutex(url), Mutex(url)
    other.acquire()
    ticks = 0
    task = asyncio.create_task(mutex.acquire())
    while (await mutex.status()).waiters == 0:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
        ticks += 1
    assert not task.done()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(other.release).result()
    assert await asyncio.wait_for(task, 10)
    await mutex.release()


async def test_loss(url: str) -> None:
    mutex = AsyncMutex(url)
    hold = await mutex.hold()
    told: asyncio.Future[IpcMutexError] = asyncio.get_running_loop().create_future()
    hold.on_lost(told.set_result)
    assert await mutex.break_lock()
    assert isinstance(await asyncio.wait_for(told, 10), LockLost)
    assert hold.lost
    with pytest.raises(LockLost):
        await hold.release()
    with pytest.raises(LockLost):
        async with mutex:
            await mutex.break_lock()
    with pytest.raises(KeyError) as raised:
        async with mutex:
            await mutex.break_lock()
            raise KeyError("body")
    assert raised.value.__notes__


async def test_a_loss_is_told_in_the_context_of_who_asked(url: str) -> None:
    request = contextvars.ContextVar("request", default="nobody's")
    mutex = AsyncMutex(url)
    hold = await mutex.hold()
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    request.set("ours")
    hold.on_lost(lambda _: told.set_result(request.get()))
    request.set("another")
    assert await mutex.break_lock()
    assert await asyncio.wait_for(told, 10) == "ours"
    with pytest.raises(LockLost):
        await hold.release()


def test_a_loss_that_no_loop_is_there_to_be_told_of(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    mutex, told = AsyncMutex(url), threading.Event()

    async def listening() -> AsyncHold:
        hold = await mutex.hold()
        hold.on_lost(lambda _: None)
        # As if it were closed between a look and a call.
        monkeypatch.setattr(asyncio.get_running_loop(), "is_closed", lambda: False)
        return hold

    hold = asyncio.run(listening())
    hold._hold.on_lost(lambda _: told.set())
    assert Mutex(url).break_lock()
    assert told.wait(10)
    assert unraisable == []
    with pytest.raises(LockLost):
        hold._hold.release()


async def test_what_is_closed_says_what_was_asked(url: str) -> None:
    mutex, same = AsyncMutex(url), Mutex(url)
    await mutex.close()
    same.close()
    for asked, there in (mutex.status, same.status), (mutex.locked, same.locked), (mutex.break_lock, same.break_lock):
        with pytest.raises(Closed) as told:
            await asked()
        with pytest.raises(Closed, match=re.escape(str(told.value))):
            there()


async def test_close_ends_waits(url: str) -> None:
    mutex, holder = AsyncMutex(url), AsyncMutex(url)
    async with holder:
        task = asyncio.create_task(mutex.acquire())
        await lined_up(holder, 1)
        await mutex.close()
        with pytest.raises(Closed):
            await task


async def test_looks(url: str) -> None:
    mutex = AsyncMutex(url)
    assert re.fullmatch(r"<unlocked ipcmutex\.AsyncMutex object at 0x[0-9a-f]+>", repr(mutex))
    async with mutex as hold:
        assert repr(mutex).startswith("<locked ipcmutex.AsyncMutex")
        assert repr(hold).startswith("<held ipcmutex.AsyncHold of")
    assert type(pickle.loads(pickle.dumps(mutex))) is AsyncMutex
    assert weakref.ref(mutex)() is mutex
    assert mutex.url == url.replace(f":{SECRET}@", "***@")


async def test_y10_what_is_collected_is_released_with_a_warning(url: str) -> None:
    mutex = AsyncMutex(url)
    hold = await mutex.hold()
    with pytest.warns(ResourceWarning, match="unreleased hold"):
        del hold
        while await mutex.locked():  # the thread that brought it may still be on its way out
            gc.collect()


def test_y9_a_loop_that_ends_with_waiters_leaves_nothing_held(url: str, child: Callable[..., Child]) -> None:
    code, out, err = child(
        """
        import asyncio, os, sys, time
        from ipcmutex import AsyncMutex, Mutex
        url = sys.argv[1]
        holder = Mutex(url)
        holder.acquire()
        mutex = AsyncMutex(url)
        async def main():
            tasks = [asyncio.create_task(mutex.acquire()) for _ in range(5)]
            while holder.status().waiters < 5:
                await asyncio.sleep(0)
            # run() cancels them.
        asyncio.run(main())
        while holder.status().waiters:
            time.sleep(0.001)
        async def abandon():
            asyncio.get_running_loop().create_task(mutex.acquire())
            while holder.status().waiters < 1:
                await asyncio.sleep(0)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(abandon())
        loop._ready.clear()
        loop.close()  # with the task pending: its grant finds a closed loop
        holder.release()
        assert Mutex(url).acquire(timeout=10) or sys.exit("leaked")
        os._exit(0)
        """,
        url,
    ).end()
    assert code == 0, out + err


async def in_a_block(mutex: AsyncMutex, entered: list[str]) -> None:
    async with mutex:
        entered.append("entered")
        await asyncio.Event().wait()


async def turns_until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0)


def test_y9_a_loop_that_ends_with_a_task_in_a_block_leaves_nothing_held(url: str) -> None:
    mutex, other, entered = AsyncMutex(url), Mutex(url), []  # type: ignore[var-annotated]
    loop = asyncio.new_event_loop()
    task = loop.create_task(in_a_block(mutex, entered))
    loop.run_until_complete(turns_until(lambda: entered))
    assert not other.acquire(timeout=0.01)
    loop.close()
    with pytest.warns(ResourceWarning, match="unreleased hold"):
        del task, loop
        gc.collect()
    assert other.acquire(timeout=10)
    other.release()


def test_y9_a_coroutine_that_is_closed_in_a_block_outside_of_a_loop_releases(url: str) -> None:
    mutex, other, entered = AsyncMutex(url), Mutex(url), []  # type: ignore[var-annotated]
    loop = asyncio.new_event_loop()
    coroutine = in_a_block(mutex, entered)
    task = loop.create_task(coroutine)
    loop.run_until_complete(turns_until(lambda: entered))
    loop.close()
    coroutine.close()
    assert other.acquire(timeout=10)
    other.release()
    assert not task.done()


def test_a_block_that_outlives_its_task_is_left_in_another(url: str) -> None:
    mutex, other = AsyncMutex(url), Mutex(url)

    async def generator() -> AsyncIterator[None]:
        async with mutex:
            yield

    async def step(blocks: AsyncIterator[None]) -> None:
        await blocks.__anext__()

    loop = asyncio.new_event_loop()
    blocks = generator()
    loop.run_until_complete(step(blocks))
    gc.collect()
    assert not other.acquire(timeout=0.01)
    with pytest.raises(StopAsyncIteration):
        loop.run_until_complete(step(blocks))
    assert other.acquire(timeout=10)
    other.release()
    loop.run_until_complete(mutex.close())
    loop.close()


@pytest.mark.parametrize("is_early", [False, True])
def test_a_task_that_is_collected_inside_of_anothers_block_leaves_that_alone(url: str, is_early: bool) -> None:
    mutex, other, entered = AsyncMutex(url), Mutex(url), []  # type: ignore[var-annotated]

    async def first() -> None:
        async with mutex as hold:
            if is_early:
                await hold.release()
            entered.append(1)
            await asyncio.Event().wait()

    async def second() -> None:
        async with mutex:
            with contextlib.nullcontext() if is_early else pytest.warns(ResourceWarning, match="unreleased hold"):
                gc.collect()
            entered.append(2)
            assert not other.acquire(blocking=False)
        assert not await mutex.locked()

    gc.disable()
    try:
        loop = asyncio.new_event_loop()
        task = loop.create_task(first())
        loop.run_until_complete(turns_until(lambda: entered))
        loop.close()
        if not is_early:
            other.break_lock()
        del task, loop
        asyncio.run(second())
    finally:
        gc.enable()
    assert entered == [1, 2]
    assert not mutex._entered


async def test_an_abandoned_generator_leaves_its_block_while_its_task_goes_on(url: str) -> None:
    """The loop closes it, in a task of its own."""
    mutex = AsyncMutex(url)

    async def generator() -> AsyncIterator[None]:
        async with mutex:
            yield

    async for _ in generator():
        break
    gc.collect()
    async with asyncio.timeout(10) if sys.version_info >= (3, 11) else contextlib.AsyncExitStack():
        await turns_until(lambda: not mutex._entered)
        async with mutex:
            pass


@pytest.mark.usefixtures("uncollected")
async def test_a_generator_that_is_collected_in_a_cycle_leaves_its_block(url: str) -> None:
    """Whoever else has the hold in sight."""
    mutex, other, kept = AsyncMutex(url), Mutex(url), []  # type: ignore[var-annotated]

    async def generator() -> AsyncIterator[None]:
        async with mutex as hold:
            kept.append(hold)
            yield

    async def abandon() -> None:
        blocks = generator()
        await blocks.__anext__()
        cycle: list[Any] = [blocks]
        cycle.append(cycle)

    await abandon()
    assert not other.acquire(blocking=False)
    gc.collect()
    async with asyncio.timeout(10) if sys.version_info >= (3, 11) else contextlib.AsyncExitStack():
        async with mutex:
            pass


class Late(_aio._Exit):
    """As from CPython 3.15 on: a weak reference is cleared only after the finalizers of what is collected."""

    __slots__ = ("seen",)

    def __init__(self, mutex: AsyncMutex, is_generators: bool) -> None:
        super().__init__(mutex, is_generators)
        self.seen: Any = lambda: self


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is collected but where the test does; what goes wrong there is said to nobody."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        gc.enable()


@contextlib.asynccontextmanager
async def translated() -> AsyncIterator[None]:
    try:
        yield
    except BaseException as error:
        raise KeyError("translated") from error


@contextlib.asynccontextmanager
async def cleaned_up() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.sleep(0)


def abandoned(mutex: AsyncMutex, inside: Callable[[], Any]) -> None:
    """A task that is in a block when its loop is closed; to be collected."""
    entered = []

    async def work() -> None:
        async with mutex, inside() as group:
            if group is not None:
                group.create_task(asyncio.Event().wait())
            entered.append(1)
            await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(work())
    loop.run_until_complete(turns_until(lambda: entered))
    assert not task.done()
    loop.close()


INSIDE = [translated, cleaned_up, *([asyncio.TaskGroup] if sys.version_info >= (3, 11) else [])]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.usefixtures("uncollected")
def test_a_collected_task_leaves_its_own_block_whatever_it_raises(
    url: str, monkeypatch: pytest.MonkeyPatch, inside: Callable[[], Any], is_late: bool
) -> None:
    if is_late:
        monkeypatch.setattr(_aio, "_Exit", Late)
    mutex, other = AsyncMutex(url), Mutex(url)
    abandoned(mutex, inside)
    other.break_lock()

    async def second() -> None:
        async with mutex:
            gc.collect()
            assert not other.acquire(blocking=False)
        assert other.acquire(timeout=10)
        other.release()

    asyncio.run(second())


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.usefixtures("uncollected")
def test_a_generator_leaves_its_block_after_a_task_was_collected_that_never_did(url: str, inside: Callable[[], Any]) -> None:
    mutex, other = AsyncMutex(url), Mutex(url)
    abandoned(mutex, inside)
    gc.collect()

    async def generator() -> AsyncIterator[None]:
        async with mutex:
            yield

    async def leave_early() -> None:
        blocks = generator()
        await blocks.__anext__()
        assert not other.acquire(blocking=False)
        await blocks.aclose()  # type: ignore[attr-defined]
        assert other.acquire(timeout=10)
        other.release()

    asyncio.run(leave_early())


async def entered_by_a_helper(mutex: AsyncMutex) -> Callable[..., Any]:
    async def enter() -> None:
        await mutex.__aenter__()

    async def leave() -> None:
        await mutex.__aexit__(None, None, None)

    await enter()
    return leave


async def entered_by_one_for_both_ways(mutex: AsyncMutex) -> Callable[..., Any]:
    async def go(is_in: bool) -> None:
        await (mutex.__aenter__() if is_in else mutex.__aexit__(None, None, None))

    await go(True)
    return lambda: go(False)


async def entered_by_a_stack(mutex: AsyncMutex) -> Callable[..., Any]:
    stack = contextlib.AsyncExitStack()
    await stack.enter_async_context(mutex)
    return stack.aclose


async def entered_by_one_who_keeps_the_exit(mutex: AsyncMutex) -> Callable[..., Any]:
    async def both() -> Any:
        return await mutex.__aenter__(), mutex.__aexit__

    _, leave = await both()
    return lambda: leave(None, None, None)


async def entered_by_one_who_drops_the_exit(mutex: AsyncMutex) -> Callable[..., Any]:
    async def both() -> None:
        enter, leave = mutex.__aenter__, mutex.__aexit__
        assert callable(leave)
        await enter()

    await both()
    return lambda: mutex.__aexit__(None, None, None)


class Sub(AsyncMutex):
    async def __aenter__(self) -> AsyncHold:
        return await super().__aenter__()

    async def __aexit__(self, *what: Any) -> None:
        await super().__aexit__(*what)


async def entered_by_a_subclass(mutex: AsyncMutex) -> Callable[..., Any]:
    stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def block() -> AsyncIterator[None]:
        async with mutex:
            yield

    await stack.enter_async_context(block())
    return stack.aclose


@pytest.mark.parametrize(
    "entered",
    [
        entered_by_a_helper,
        entered_by_one_for_both_ways,
        entered_by_a_stack,
        entered_by_one_who_keeps_the_exit,
        entered_by_one_who_drops_the_exit,
        entered_by_a_subclass,
    ],
)
async def test_each_leaves_its_own_block_however_it_entered(url: str, entered: Callable[..., Any]) -> None:
    mutex, other = (Sub if entered is entered_by_a_subclass else AsyncMutex)(url), Mutex(url)
    inside: list[int] = []
    go_on = [asyncio.Event() for _ in range(4)]

    async def work(turn: int) -> None:
        leave = await entered(mutex)
        inside.append(turn)
        await go_on[turn].wait()
        if turn == 2:
            with pytest.raises(LockLost):
                await leave()
        else:
            await leave()

    tasks = []
    for turn in range(4):
        tasks.append(asyncio.create_task(work(turn)))
        await (lined_up(mutex, turn) if turn else turns_until(lambda: inside))
    for turn in 0, 1:
        assert inside == list(range(turn + 1))
        gc.collect()
        assert not other.acquire(blocking=False)
        go_on[turn].set()
        await tasks[turn]
        await turns_until(lambda: turn + 2 == len(inside))
    # Of two who are inside it is the one that lost the lock who leaves.
    await mutex.break_lock()
    await turns_until(lambda: len(inside) == 4)
    go_on[2].set()
    await tasks[2]
    assert not other.acquire(blocking=False)
    go_on[3].set()
    await tasks[3]
    assert other.acquire(timeout=10)
    other.release()


@pytest.mark.parametrize("is_statement", [False, True])
async def test_an_interrupt_on_the_way_into_a_block_leaves_nothing_held(
    mpm: str, monkeypatch: pytest.MonkeyPatch, is_statement: bool
) -> None:
    class Interrupted(AsyncMutex):
        def _enter(self, block: Any) -> None:
            super()._enter(block)
            raise KeyboardInterrupt

    class Exit(_aio._Exit):
        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if isinstance(value, AsyncHold):
                raise KeyboardInterrupt

    monkeypatch.setattr(_aio, "_Exit", Exit)
    mutex = Interrupted(mpm)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        if is_statement:
            async with mutex:
                pass
        else:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(mutex)
    assert not await mutex.locked(), interrupted
    assert not mutex._entered


@pytest.mark.usefixtures("uncollected")
def test_y2_an_interrupt_on_the_way_out_of_a_block_leaves_nothing_held(url: str) -> None:
    """Python runs the handlers of signals where a function begins, too: before any of its code can catch what they raise."""
    mutex, other = AsyncMutex(url), Mutex(url)

    def interrupted(after: int) -> bool:
        begun = 0

        def interrupt(frame: FrameType, event: str, _: object) -> None:
            nonlocal begun
            begun += event == "call" and frame.f_code.co_filename == _aio.__file__
            if begun > after:
                sys.setprofile(None)
                raise KeyboardInterrupt

        async def work() -> None:
            async with mutex:
                sys.setprofile(interrupt)
            sys.setprofile(None)

        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(work())
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        return False

    after = 0
    while interrupted(after):
        gc.collect()
        assert other.acquire(timeout=10), after
        other.release()
        after += 1
    assert after > 0


def test_a_loop_that_is_closed_while_an_acquire_opens_is_told_of_nothing(name: str, child: Callable[..., Child]) -> None:
    code, out, err = child(
        """
        import asyncio, gc, os, socket, sys, tempfile
        from ipcmutex import AsyncMutex
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{folder}/silent")
            silent.listen()
            mutex = AsyncMutex(f"rpm+redis+unix://{folder}/silent?id={sys.argv[1]}&connect_timeout=1s")
            async def abandon():
                asyncio.get_running_loop().create_task(mutex.acquire())
                await asyncio.sleep(0)
            loop = asyncio.new_event_loop()
            loop.run_until_complete(abandon())
            loop._ready.clear()
            loop.close()
            del loop
            gc.collect()  # of the task it is said that it was pending
            opening = mutex._opening.outcome
            assert "does not answer" in str(opening.exception())
        """,
        name,
    ).end()
    assert code == 0 and "Traceback" not in err, out + err


@contextlib.contextmanager
def frozen(redis: str) -> Iterator[None]:
    """The server does not answer meanwhile."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(redis.partition("@")[2])
        asking.sendall(f"AUTH {SECRET}\r\nINFO server\r\n".encode())
        said = b""
        while not (found := re.search(rb"process_id:(\d+)\r", said)):
            said += asking.recv(1 << 16)
    pid = int(found[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        while "T (stopped)" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_what_is_collected_does_not_keep_the_loop_from_turning(redis: str, name: str) -> None:
    mutex, other = AsyncMutex(f"rpm+{redis}?id={name}"), AsyncMutex(f"rpm+{redis}?id={name}-other")
    hold = await mutex.hold()
    assert await other.acquire()
    with pytest.warns(ResourceWarning, match="unreleased hold") as warned, frozen(redis):
        begun = time.monotonic()
        del hold, other
        while len(warned) < 2:  # the thread that brought one may still be on its way out
            gc.collect()
            await asyncio.sleep(0)
        assert time.monotonic() - begun < 1  # a server has two seconds to answer
    for freed in f"{name}", f"{name}-other":
        async with AsyncMutex(f"rpm+{redis}?id={freed}").hold(timeout=20):
            pass


def askers() -> int:
    """The library's threads that ask servers for who must not wait."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            found += (task / "comm").read_text().startswith("ipcmutex-io")
        except OSError:  # it has just ended
            pass
    return found


@pytest.mark.parametrize("is_free", [True, False])
async def test_the_loop_turns_though_it_does_nothing_but_try(url: str, is_free: bool) -> None:
    mutex, other = AsyncMutex(url), AsyncMutex(url)
    if not is_free:
        await other.acquire()
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    since = time.monotonic()
    while not turned.is_set():
        assert time.monotonic() - since < 60
        if await mutex.acquire(False):
            await mutex.release()
    if not is_free:
        await other.release()


class Clock:
    """What the module takes for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(_aio, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("is_block", [False, True])
async def test_nothing_is_held_while_the_loop_has_its_turn(mpm: str, monkeypatch: pytest.MonkeyPatch, is_block: bool) -> None:
    mutex, other, clock = AsyncMutex(mpm), Mutex(mpm), Clock(monkeypatch)
    free: list[bool] = []

    def look() -> None:
        free.append(other.acquire(blocking=False))  # a call that waits here would wait for ever
        if free[-1]:
            other.release()

    for _ in range(3):
        asyncio.get_running_loop().call_soon(look)
        for _ in range(2):
            if is_block:
                async with mutex:
                    clock.now += 0.006
            else:
                assert await mutex.acquire(False)
                await mutex.release()
                clock.now += 0.006
    assert free == [True] * 3


async def test_a_wait_that_is_shorter_than_the_turn_of_the_loop_is_one(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, mutex, other, clock = AsyncMutex(f"spm:{name}-before"), AsyncMutex(url), AsyncMutex(url), Clock(monkeypatch)
    hold = await other.hold()
    releases = []

    def busy() -> None:
        clock.now += 1000
        asyncio.get_running_loop().call_soon(lambda: releases.append(asyncio.ensure_future(hold.release())))

    await asyncio.sleep(0)
    async with before:
        clock.now += 0.006
    asyncio.get_running_loop().call_soon(busy)
    assert await mutex.acquire(timeout=60)
    await asyncio.gather(*releases)
    await mutex.release()


@pytest.mark.parametrize("kind", ["spm", "mpm"])
async def test_who_lets_the_loop_turn_is_not_overtaken(name: str, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    url = f"{kind}:{name}"
    mutex, again, clock = AsyncMutex(url), AsyncMutex(url), Clock(monkeypatch)
    order = []

    async def take(mutex: AsyncMutex, who: int) -> None:
        async with mutex:
            order.append(who)

    async with mutex:
        later = asyncio.create_task(take(again, 2))
        clock.now += 0.006
    await take(mutex, 1)
    await later
    assert order == [1, 2]
    assert not _aio._event_loop()._turning


def test_a_block_is_entered_and_left_where_no_frame_of_python_calls(name: str, child: Callable[..., Child]) -> None:
    code, out, err = child(
        """
        import _thread, operator, queue, sys
        from ipcmutex import AsyncMutex
        mutex, got = AsyncMutex("spm:" + sys.argv[1]), queue.SimpleQueue()
        sys.unraisablehook = lambda failed: got.put(failed.exc_value)
        _thread.start_new_thread(map(got.put, map(operator.methodcaller("__aenter__"), [mutex])).__next__, ())
        got.get(timeout=60).close()
        _thread.start_new_thread(map(got.put, map(operator.attrgetter("__aexit__"), [mutex])).__next__, ())
        assert callable(got.get(timeout=60))
        """,
        name,
    ).end()
    assert code == 0, out + err


async def test_the_loop_turns_though_it_does_nothing_but_ask(url: str) -> None:
    mutex, turned = AsyncMutex(url), asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    since = time.monotonic()
    while not turned.is_set():
        assert time.monotonic() - since < 10
        assert not await mutex.locked()


async def test_the_loop_turns_though_it_does_nothing_but_take_a_free_lock(redis: str) -> None:
    mutex = AsyncMutex(f"rpm+{redis}?id=nothing-but")
    for _ in range(20):  # by then the loop has a connection of its own
        async with mutex:
            await asyncio.sleep(0)
    for _ in range(30):
        turned = asyncio.Event()
        asyncio.get_running_loop().call_soon(turned.set)
        taken = 0
        while not turned.is_set():
            assert taken <= 2
            async with mutex:
                taken += 1
                time.sleep(0.006)
    # Who takes it seldom does not wait for that. The answer of a busy server may come too late to be there at once.
    for _ in range(500):
        await asyncio.sleep(0.01)
        turned = asyncio.Event()
        asyncio.get_running_loop().call_soon(turned.set)
        async with mutex:
            at_once = not turned.is_set()
        if at_once:
            break
    assert at_once
    await mutex.close()


def test_a_server_is_asked_without_a_thread_on_the_way(redis: str) -> None:
    async def turns() -> None:
        mutex = AsyncMutex(f"rpm+{redis}?id=without-a-thread")
        other = AsyncMutex(f"rpm+{redis}?id=without-a-thread")
        last = 0
        for _ in range(2):
            while True:
                for _ in range(20):
                    async with mutex as hold:
                        assert hold.token > last
                        last = hold.token
                if askers() == 0:
                    break
            # Held, it is waited for as ever.
            held = await mutex.hold()
            assert not await other.acquire(blocking=False)
            waiting = asyncio.ensure_future(other.acquire())
            await held.release()
            assert await waiting
            await other.release()
            with pytest.raises(NotOwner):
                await held.release()
        await mutex.close()
        await other.close()

    for _ in range(3):  # each with an event loop of its own
        asyncio.run(asyncio.wait_for(turns(), 60))


def test_what_two_handlers_of_signals_raise_at_once_loses_no_outcome(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs them in the calls that tell of it, one in each."""
    calls: list[bool] = []
    told: list[Any] = []
    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: printed.append(what.exc_type))

    def done(*outcome: Any) -> None:
        calls.append(threading.current_thread() is threading.main_thread())
        if len(calls) == 1:
            raise KeyboardInterrupt
        if len(calls) == 2:
            raise SystemExit
        told.append(outcome)

    async def ask() -> None:
        mutex = AsyncMutex(f"rpm+{redis}?id=two-handlers")
        while True:
            for _ in range(20):
                async with mutex:
                    pass
            if askers() == 0:
                break
        opened: Any = mutex._opened()
        opened._start(True, None, _aio._event_loop().known, done)
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    asking = loop.create_task(ask())
    with pytest.raises(KeyboardInterrupt):  # by way of the task if the answer was there at once
        loop.run_until_complete(asking)
    asking.cancel()
    loop.run_until_complete(asyncio.wait([asking]))
    assert asking.cancelled() or isinstance(asking.exception(), KeyboardInterrupt)
    loop.close()
    assert calls == [True] * 3
    assert printed == [SystemExit]
    ((hold, error),) = told
    assert error is None
    assert isinstance(hold, Hold)
    hold.release()


async def test_a_loss_that_the_release_tells_of_is_remembered(url: str) -> None:
    mutex, other = AsyncMutex(url), Mutex(url)
    with pytest.raises(LockLost):
        async with mutex.hold() as hold:
            other.break_lock()
    assert hold.lost
    with pytest.raises(ZeroDivisionError):
        with other.hold() as held:
            await mutex.break_lock()
            1 / 0  # goes first
    assert held.lost
    with other.hold() as held:
        pass
    assert not held.lost
