"""CPython's own tests of its locks, run with ours in their place."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from ipcmutex import AsyncMutex, Mutex

lock_tests = pytest.importorskip("test.lock_tests", reason="this Python comes without its own tests")

_count = itertools.count()


def _new() -> Mutex:
    return Mutex(f"spm:drop-in-{next(_count)}")


# Those tests leave locks held, which ours warn of.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestThreadingLock(lock_tests.LockTests):  # type: ignore[misc]
    locktype = staticmethod(_new)

    # threading's private hook. What a forked child has is tested in test_process.py.
    test_at_fork_reinit = None


# What CPython's test_asyncio.test_locks.LockTests asks of asyncio.Lock, where the coroutines of ours leave it room.


async def _queued(mutex: AsyncMutex, waiters: int) -> None:
    while (await mutex.status()).waiters != waiters:
        await asyncio.sleep(0)


async def test_y9_acquire_is_served_in_order() -> None:
    mutex = AsyncMutex(f"spm:drop-in-{next(_count)}")
    result: list[int] = []
    assert await mutex.acquire()

    async def task(turn: int) -> bool:
        if await mutex.acquire():
            result.append(turn)
        return True

    tasks = []
    for turn in 1, 2, 3:
        tasks.append(asyncio.create_task(task(turn)))
        await _queued(mutex, turn)
    for turn in 1, 2, 3:
        await mutex.release()
        assert await tasks[turn - 1]
        assert result == list(range(1, turn + 1))
    assert await mutex.locked()
    await mutex.release()


async def test_y9_cancel_race() -> None:
    """Three wait; the first is cancelled in the moment of its grant; the others are served all the same."""
    mutex = AsyncMutex(f"spm:drop-in-{next(_count)}")
    order: list[str] = []

    async def lockit(name: str, blocker: asyncio.Future[None] | None) -> None:
        async with mutex:
            order.append(name)
            if blocker is not None:
                await blocker

    held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(lockit("A", held))
    while not order:
        await asyncio.sleep(0)
    second = asyncio.create_task(lockit("B", None))
    await _queued(mutex, 1)
    third = asyncio.create_task(lockit("C", None))
    await _queued(mutex, 2)
    held.set_result(None)
    second.cancel()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.wait_for(third, 30)
    assert order == ["A", "C"]
    assert not await mutex.locked()


async def test_y9_a_finished_waiter_that_is_cancelled_blocks_nobody() -> None:
    mutex = AsyncMutex(f"spm:drop-in-{next(_count)}")
    await mutex.acquire()
    waiter = asyncio.create_task(mutex.acquire())
    await _queued(mutex, 1)
    await mutex.release()
    waiter.cancel()
    try:
        assert await waiter
        await mutex.release()
    except asyncio.CancelledError:
        pass
    assert await asyncio.wait_for(mutex.acquire(), 30)
    await mutex.release()


async def test_y9_a_block_whose_body_fails_releases() -> None:
    mutex = AsyncMutex(f"spm:drop-in-{next(_count)}")
    with pytest.raises(ZeroDivisionError):
        async with mutex:
            raise ZeroDivisionError
    assert not await mutex.locked()
