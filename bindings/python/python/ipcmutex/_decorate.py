"""Mutexes as decorators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from ._aio import AsyncMutex
    from ._ipcmutex import Mutex

P = ParamSpec("P")
R = TypeVar("R")


def _refuse_generators(function: Callable[..., object]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        # As with a coroutine; and when it ends is known to nobody here.
        raise TypeError("a generator function cannot be decorated: hold the mutex in a block within it")


def guarded(mutex: Mutex, function: Callable[P, R]) -> Callable[P, R]:
    """Runs the function holding the mutex."""
    if inspect.iscoroutinefunction(function):
        # It would be held while the coroutine is made, and not while it runs.
        raise TypeError("a coroutine function is decorated with an AsyncMutex")
    _refuse_generators(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with mutex:
            return function(*args, **kwargs)

    return run


def guarded_async(mutex: AsyncMutex, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Awaits the function holding the mutex."""
    _refuse_generators(function)

    @functools.wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        async with mutex:
            return await function(*args, **kwargs)

    return run
