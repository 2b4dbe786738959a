"""AsyncMutex: the same lock for asyncio.

Nothing here blocks the event loop, and no executor is used. A thread's or a process's lock is tried on the spot, and a wait
for it costs memory alone. A server is asked on a connection that the event loop watches, where the answer of a near one is looked for a tenth
of a millisecond or so, or on short-lived threads of the library; either way it goes on even if the task that asked for it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future as Outcome
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from . import _decorate
from ._ipcmutex import (
    AcquireTimeout,
    Closed,
    EventLoop,
    Hold,
    InvalidArgument,
    IpcMutexError,
    Mutex,
    NotOwner,
    Status,
    Wait,
    Watched,
    describe,
    offload,
)

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


def _told(outcome: Outcome[T]) -> Callable[[T, BaseException | None], None]:
    """What tells it, and again if the handler of a signal raised in the first call."""
    outcome.set_running_or_notify_cancel()  # from here on nobody's cancellation reaches it

    def done(result: T, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)

    return done


def _run(remote: bool, job: Callable[[], T]) -> Outcome[T]:
    """Runs the job now, or on a library thread if it talks to a server; it always runs to its end."""
    outcome: Outcome[T] = Outcome()
    done = _told(outcome)
    if remote:
        offload(job, done)
    else:
        try:
            outcome.set_result(job())
        except Exception as error:
            outcome.set_exception(error)
    return outcome


class _Loop:
    """What is known of an event loop."""

    __slots__ = ("_since", "_turning", "known")

    def __init__(self, watch: Callable[[Watched], None]) -> None:
        self.known = EventLoop(watch)  # by the library
        self._since: float | None = None
        self._turning: list[str] = []  # the URLs of those who let it turn first

    def is_turn(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is to turn first, after 5 ms of acquisitions: those that are settled at once would keep it from that.

        Counted since it last turned: who seldom takes a lock never waits for that.
        """
        now = time.monotonic()  # the loop's own may stand still
        if self._since is None:
            self._since = now
            loop.call_soon(self._turned)
        return now - self._since >= 0.005

    def _turned(self) -> None:
        self._since = None

    def is_turning(self, url: str) -> bool:
        """Whether somebody who came earlier for that lock lets it turn: who comes now is behind."""
        return url in self._turning

    async def turn(self, url: str) -> None:
        self._turning.append(url)
        try:
            await asyncio.sleep(0)
        finally:
            self._turning.remove(url)


_event_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()


def _event_loop() -> _Loop:
    """What is known of the running event loop."""
    loop = asyncio.get_running_loop()
    known = _event_loops.get(loop)
    if known is None:
        here = weakref.ref(loop)

        def watch(watched: Watched) -> None:
            loop = here()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(_watch, here, watched)
            except RuntimeError:  # it is closed
                pass

        known = _event_loops[loop] = _Loop(watch)
    return known


def _watch(here: weakref.ref[asyncio.AbstractEventLoop], watched: Watched) -> None:
    loop, descriptor = here(), watched.fileno()

    def ready() -> None:
        loop = here()
        if not watched.read() and loop is not None:
            loop.remove_reader(descriptor)

    try:
        if loop is not None:
            loop.add_reader(descriptor, ready)
            watched.start()
    except NotImplementedError:  # not every event loop can watch
        pass


def _releasing(held: Hold | Mutex, remote: bool) -> Outcome[None]:
    """Releases: it always runs to its end."""
    if not remote or asyncio._get_running_loop() is None:
        return _run(remote, held.release)
    outcome: Outcome[None] = Outcome()
    try:
        held._release_on(_event_loop().known, _told(outcome))
    except IpcMutexError as error:
        outcome.set_exception(error)
    return outcome


async def _result(outcome: Outcome[T]) -> T:
    return outcome.result() if outcome.done() else await asyncio.wrap_future(outcome)


async def _nothing() -> None:
    pass


class _Done:
    """An awaitable that has happened."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class _Later:
    """An awaitable of what is under way, for whichever loop awaits it, if one does."""

    def __init__(self, outcome: Outcome[None]) -> None:
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, None]:
        return _result(self._outcome).__await__()


def _remove(items: list[T], item: T) -> None:
    """Unless another thread has."""
    try:
        items.remove(item)
    except ValueError:
        pass


class AsyncHold:
    """One acquisition, and the proof of holding, for asyncio.

    An async context manager: leaving the block releases. One that is garbage-collected is released, with a ResourceWarning.
    """

    __slots__ = ("__weakref__", "_hold", "_remote")

    def __init__(self, hold: Hold, remote: bool) -> None:
        self._hold = hold
        self._remote = remote

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every earlier hold of the name."""
        return self._hold.token

    @property
    def abandoned(self) -> bool:
        """Whether the previous hold ended without a release."""
        return self._hold.abandoned

    @property
    def valid_ms(self) -> int | None:
        """How many milliseconds it lasts for certain without a renewal; None if it has no lease."""
        return self._hold.valid_ms

    @property
    def lost(self) -> bool:
        """Whether it was lost. No I/O."""
        return self._hold.lost

    def check(self) -> None:
        """Raises LockLost if it was lost, NotOwner if it was released. No I/O."""
        self._hold.check()

    async def extend(self, ttl: float | None = None) -> None:
        """Renews the lease to ttl seconds, or to the URL's. Unsupported where there is no lease."""
        await _result(_run(self._remote, lambda: self._hold.extend(ttl)))

    def on_lost(self, callback: Callable[[IpcMutexError], object]) -> None:
        """Calls callback(error) once, on the running event loop, in this context, if the hold is lost; never if it is released."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def tell(error: IpcMutexError) -> None:
            try:
                loop.call_soon_threadsafe(callback, error, context=context)
            except RuntimeError:  # the loop is closed: nobody listens any more
                pass

        self._hold.on_lost(tell)

    def release(self) -> Awaitable[None]:
        """Ends this hold, and no other. It is under way when this returns; awaiting tells how it went."""
        outcome = _releasing(self._hold, self._remote)
        if not outcome.done():
            return _Later(outcome) if asyncio._get_running_loop() is None else asyncio.wrap_future(outcome)
        outcome.result()
        return _Done()

    async def __aenter__(self) -> AsyncHold:
        return self

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        if error is None:
            outcome = _releasing(self._hold, self._remote)
        else:
            outcome = _run(self._remote, lambda: self._hold.__exit__(kind, error, traceback))
        if not outcome.done() and asyncio._get_running_loop() is None:
            return _nothing()  # the coroutine is closed outside of a loop: it cannot wait for what is under way
        return _result(outcome)

    def __repr__(self) -> str:
        return repr(self._hold).replace("ipcmutex.Hold", "ipcmutex.AsyncHold", 1)


class _Holding:
    """What AsyncMutex.hold() returns: awaitable, and an async context manager."""

    __slots__ = ("_hold", "_take")

    def __init__(self, take: Callable[[], Coroutine[Any, Any, AsyncHold]]) -> None:
        self._take = take
        self._hold: AsyncHold | None = None

    def __await__(self) -> Generator[Any, None, AsyncHold]:
        return self._take().__await__()

    async def __aenter__(self) -> AsyncHold:
        self._hold = await self._take()
        return self._hold

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        assert self._hold is not None, "left without being entered"
        return self._hold.__aexit__(kind, error, traceback)


class _Exit:
    """What one `async with mutex:` got as the mutex's `__aexit__`: nobody else can leave its block.

    It gets it before it enters, and keeps it until it calls it. Nothing else keeps it, and the hold: they go with a coroutine that never goes on.
    """

    __slots__ = ("__weakref__", "hold", "is_generators", "mutex", "seen")

    def __init__(self, mutex: AsyncMutex, is_generators: bool) -> None:
        self.mutex = mutex
        self.is_generators = is_generators
        self.hold: AsyncHold | None = None
        self.seen = weakref.ref(self)

    def __call__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        hold, self.hold = self.hold, None
        if hold is None:  # nothing was entered by it
            return AsyncMutex.__aexit__(self.mutex, kind, error, traceback)
        if self.seen() is None:
            # The coroutine is collected, in the midst of whatever other, and cannot wait: the hold goes with it.
            if not self.is_generators:
                return _nothing()
            # Its loop closes an async generator, in a task of its own, unless a coroutine is collected that is in it.
            outcome = _run(hold._remote, lambda: hold._hold.__exit__(kind, error, traceback))
            return _result(outcome) if outcome.done() else _nothing()
        return hold.__aexit__(kind, error, traceback)


class _Got(threading.local):
    """Which exit was got last in this thread, in which frame and where there."""

    last: tuple[weakref.ref[_Exit], int, int] | None = None

    # Up to 3.13 `async with` gets its exit and enters in one instruction, then (3.14 and 3.15) enters 8 bytes after it got it.
    _reach = 0 if sys.version_info < (3, 14) else 8

    def exit(self, mutex: AsyncMutex, frame: FrameType | None) -> _Exit | None:
        """That of the `async with` which enters now; None if it is not one that does."""
        last, self.last = self.last, None
        if last is None or frame is None:
            return None
        seen, known, at = last
        exit = seen()
        if exit is None or exit.mutex is not mutex or known != id(frame) or frame.f_lasti - at != self._reach:
            return None
        return exit


_got = _Got()


def _caller() -> FrameType | None:
    """The frame that calls what calls this; None if none of Python does."""
    try:
        return sys._getframe(2)
    except ValueError:
        return None


class _Exits:
    """The method `__aexit__`, which is another for each who gets it of an object."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def __get__(self, mutex: AsyncMutex | None, _: type[AsyncMutex] | None = None) -> Callable[..., Any]:
        if mutex is None:
            return self._method
        frame = _caller()
        if frame is None:
            return _Exit(mutex, False)
        exit = _Exit(mutex, bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR))
        _got.last = exit.seen, id(frame), frame.f_lasti
        return exit


def _one_each(method: Callable[P, R]) -> Callable[P, R]:
    return cast(Callable[P, R], _Exits(method))


class _Block:
    """What was entered in another way than by an `async with mutex:`, as by an AsyncExitStack or the methods of a subclass.

    Nothing but its task keeps it: one that never goes on, for its loop was closed, is collected, and the hold with it.
    """

    __slots__ = ("__weakref__", "_mutex", "hold", "seen", "task")

    def __init__(self, mutex: AsyncMutex, hold: AsyncHold, task: asyncio.Task[Any] | None) -> None:
        self._mutex = mutex
        self.hold = hold
        self.task = task
        self.seen = weakref.ref(self)

    def __call__(self, _task: object) -> None:
        """Its task has ended, and it has not: it is an async generator's, and is left in another task."""
        if self.seen in self._mutex._entered:
            self._mutex._outliving.append(self)


class _Opening:
    """The opening of a mutex, which no other process than that which began it can see the end of."""

    __slots__ = ("_given_up", "_process", "mutex", "outcome")

    def __init__(self, url: str, remote: bool) -> None:
        self._process = os.getpid()
        self.mutex: Mutex | None = None  # seen without a lock: the outcome's may have been taken when the process was forked

        def job() -> Mutex:
            self.mutex = Mutex(url)
            return self.mutex

        self._given_up = False  # by somebody who waited for it
        self.outcome = _run(remote, job)

    def is_ours(self) -> bool:
        """Whether it is done or will be: in a forked child the thread that was at it is not there."""
        return self.mutex is not None or self._process == os.getpid()

    def is_of_use(self) -> bool:
        """Whether it is to be waited for. Why it failed behind the back of who gave it up is no news to who comes later."""
        return self.is_ours() and (self.mutex is not None or not (self._given_up and self.outcome.done()))

    async def opened(self, limit: float | None = None) -> Mutex:
        """The mutex. After limit seconds TimeoutError, and it goes on."""
        if self.mutex is not None:
            return self.mutex
        if self.outcome.done():
            return self.outcome.result()
        opened = asyncio.wrap_future(self.outcome)
        try:
            await asyncio.wait([opened], timeout=limit)
            if not opened.done():
                raise TimeoutError
            return opened.result()
        finally:
            if opened.done():
                opened.exception()  # else it would be said that nobody saw it
            else:
                self._given_up = True
                try:
                    opened.cancel()
                except RuntimeError:  # the loop is closed: nobody is told
                    pass


class AsyncMutex:
    """The lock of Mutex(url), for asyncio: the same names, awaitable and cancellable.

    The constructor opens it. For a server that goes on in the background, and the first await tells if it failed.
    """

    def __init__(self, url: str) -> None:
        self._url, self._shown, self._remote = describe(url)
        self._closed = False
        self._own: Hold | None = None  # what acquire() took: nothing but this object owns it
        self._entered: list[weakref.ref[_Block]] = []
        self._outliving: list[_Block] = []  # those that no task keeps
        self._opening: _Opening | None = self._open()

    def _open(self) -> _Opening:
        opening = _Opening(self._url, self._remote)
        if not self._remote:
            opening.outcome.result()  # raises here what opening it met
        return opening

    async def _mutex(self, operation: str, limit: float | None = None) -> Mutex:
        if self._closed:
            raise self._not_opened(operation)
        opening = self._opening
        if opening is None or not opening.is_of_use():
            opening = self._opening = self._open()
        try:
            return await opening.opened(limit)
        except TimeoutError:
            text = f"acquire {self._shown}: not acquired within {limit or 0:.3f} s: it is not opened yet"
            raise AcquireTimeout(text) from None
        except IpcMutexError:
            if self._opening is opening:
                self._opening = None  # the next use tries again
            raise

    def _opened(self) -> Mutex | None:
        return None if self._opening is None else self._opening.mutex

    def _not_opened(self, operation: str) -> Closed:
        return Closed(f"{operation} {self._shown}: still not opened: the mutex is closed")

    def _not_acquired(self, operation: str) -> IpcMutexError:
        if self._closed:
            return self._not_opened(operation)
        return NotOwner(f"{operation} {self._shown}: still not acquired: nothing is held through this handle")

    async def _take(self, blocking: bool, timeout: float | None) -> Hold:
        loop, event_loop = asyncio.get_running_loop(), _event_loop()
        mutex, is_turn = self._opened(), event_loop.is_turn(loop) or event_loop.is_turning(self._url)
        if mutex is None:
            # To wait for the opening is to wait; a try lasts as long as that. What is no time to wait is refused below.
            begun, limit = time.monotonic(), None
            if blocking and isinstance(timeout, (int, float)) and 0 < timeout <= threading.TIMEOUT_MAX:
                limit = timeout
            mutex = await self._mutex("acquire", limit)
            if limit is not None:
                timeout = max(0.0, limit - (time.monotonic() - begun))
        if is_turn:
            # Before it takes the lock: others would wait for all that the loop has to do, or that for the lock. It is no part of the
            # timeout: a wait that is shorter would become a try, and never get a busy lock.
            await event_loop.turn(self._url)
        arrival: asyncio.Future[None] = loop.create_future()
        granted: list[Hold] = []  # until somebody takes it: the waiter, or who sees that nobody waits any more
        waiting = True

        def give_back() -> None:
            try:
                hold = granted.pop()
            except IndexError:  # there is none, or another thread was here first
                return
            self._give_back(hold)

        def settle(error: BaseException | None) -> None:
            if arrival.cancelled() or not waiting:
                give_back()
            elif arrival.done():
                pass
            elif error is None:
                arrival.set_result(None)
            else:
                arrival.set_exception(error)

        # Called again if the handler of a signal raised in the first call.
        def done(hold: Hold | None, error: BaseException | None) -> None:
            if hold is not None and hold not in granted:
                granted.append(hold)
            if not waiting:  # asked after the hold can be seen: the waiter looks for that after it has said so
                give_back()
            elif asyncio._get_running_loop() is loop:
                settle(error)
            else:
                try:
                    loop.call_soon_threadsafe(settle, error)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    give_back()

        started: Hold | Wait | None = None
        try:
            started = mutex._start(blocking, timeout, event_loop.known, done)
            if isinstance(started, Hold):
                return started
            await arrival
            return granted.pop()
        except BaseException:
            # The loop may rest from now on: what was granted, or is on its way, does not wait for it.
            waiting = False
            if isinstance(started, Hold):
                self._give_back(started)
            elif started is not None:
                started.cancel()
            give_back()
            if arrival.done() and not arrival.cancelled():
                arrival.exception()  # else it would be said that nobody saw it
            raise

    def _give_back(self, hold: Hold) -> None:
        """Releases a hold that its waiter no longer wants. That it may be lost already is nothing to anybody."""
        _run(self._remote, hold.release)

    async def open(self) -> None:
        """Opens it anew after close(). The constructor has opened it already."""
        if not self._closed and self._opening is not None and self._opening.is_of_use():
            raise InvalidArgument(f"open {self._shown}: already opened; close it first")
        opening = self._open()
        self._opening, self._closed = opening, False
        try:
            await opening.opened()
        except IpcMutexError:
            if self._opening is opening:
                self._opening, self._closed = None, True
            raise

    async def close(self) -> None:
        """Closes it: releases a hold taken through it and ends its waits with Closed."""
        if self._closed:
            raise self._not_opened("close")
        opening, self._opening, self._closed = self._opening, None, True
        if opening is None or not opening.is_ours():
            return
        try:
            mutex = await opening.opened()
        except IpcMutexError:
            return  # it never opened: there is nothing to close
        await _result(_run(self._remote, mutex.close))

    async def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Whether it was acquired. timeout is in seconds; None and -1 are for ever."""
        try:
            self._own = await self._take(blocking, timeout)
        except AcquireTimeout:
            return False
        return True

    def release(self) -> Coroutine[Any, Any, None]:
        """Ends the hold that is current through this object, however it was taken.

        It is under way when this returns: cancelling the task that awaits it does not stop it.
        """
        mutex = self._opened()
        if mutex is not None:
            return _result(_releasing(mutex, self._remote))
        outcome: Outcome[None] = Outcome()
        outcome.set_exception(self._not_acquired("release"))
        return _result(outcome)

    async def locked(self) -> bool:
        """Whether somebody holds the name."""
        return (await self.status()).state == "held"

    def hold(self, timeout: float | None = None) -> _Holding:
        """Acquires within timeout seconds (None: for ever): `await` it, or use it in `async with`. Raises AcquireTimeout."""

        async def take() -> AsyncHold:
            return AsyncHold(await self._take(True, timeout), self._remote)

        return _Holding(take)

    async def status(self) -> Status:
        """Who holds the lock, and how many wait."""
        mutex = await self._mutex("status")
        if _event_loop().is_turn(asyncio.get_running_loop()):  # who asks until it is free would keep the loop from that
            await asyncio.sleep(0)
        return await _result(_run(self._remote, mutex.status))

    async def break_lock(self) -> bool:
        """Takes the lock from whoever holds it; whether somebody did. That hold is lost, its token stale."""
        mutex = await self._mutex("break")
        return await _result(_run(self._remote, mutex.break_lock))

    @property
    def token(self) -> int:
        """The fencing token of the hold that is current through this object."""
        mutex = self._opened()
        if mutex is None:
            raise self._not_acquired("token")
        return mutex.token

    @property
    def url(self) -> str:
        """The URL, its secret shown as ***."""
        return self._shown

    def __aenter__(self) -> Coroutine[Any, Any, AsyncHold]:
        return self._entering(_got.exit(self, _caller()))

    async def _entering(self, exit: _Exit | None) -> AsyncHold:
        hold = AsyncHold(await self._take(True, None), self._remote)
        block = _Block(self, hold, asyncio.current_task()) if exit is None else None
        try:
            if exit is not None:
                exit.hold = hold
            if block is not None:
                self._enter(block)
            return hold
        except BaseException:  # the handler of a signal's: the block is not entered, and nobody else releases
            if block is not None:
                self._leave(block)
            self._give_back(hold._hold)
            raise

    def _enter(self, block: _Block) -> None:
        self._entered.append(block.seen)
        if block.task is None:
            self._outliving.append(block)
        else:
            block.task.add_done_callback(block)

    def _leave(self, block: _Block) -> None:
        _remove(self._entered, block.seen)
        if block.task is None or not block.task.remove_done_callback(block):
            _remove(self._outliving, block)

    @_one_each
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        if kind is GeneratorExit:
            for seen in self._entered:
                if seen() is None:
                    # The coroutine is collected with its task, in the midst of whatever other: the hold has gone with them.
                    _remove(self._entered, seen)
                    return _nothing()
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task(loop)
        left: _Block | None = None
        for seen in reversed(self._entered):
            block = seen()
            if block is not None:
                # An async generator may leave its block in another task than it entered it in, and a coroutine that is closed in none.
                left = left or block
                if block.task is task:
                    left = block
                    break
        if left is None:
            raise self._not_acquired("release")
        self._leave(left)
        return left.hold.__aexit__(kind, error, traceback)

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """As a decorator: the coroutine function runs holding the lock."""
        return _decorate.guarded_async(self, function)

    def __repr__(self) -> str:
        mutex = self._opened()
        state = "locked" if mutex is not None and repr(mutex).startswith("<locked") else "unlocked"
        return f"<{state} ipcmutex.{type(self).__qualname__} object at {id(self):#x}>"

    def __reduce__(self) -> tuple[type[AsyncMutex], tuple[str]]:
        return type(self), (self._url,)


AsyncMutex.__module__ = AsyncHold.__module__ = "ipcmutex"
