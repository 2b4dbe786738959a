"""The locks of Python programs, each as its own documentation uses it. A module is imported by the kind that needs it."""

from __future__ import annotations

import functools
from typing import Any


class Kind:
    """`prepare` runs once, before any process is forked; `open` in each process."""

    alone = ""  # why processes cannot share it

    def __init__(self, params: dict[str, str]) -> None:
        self.params = params
        self.file = params["file"]

    def prepare(self) -> None:
        """Makes what must be there first."""

    def open(self) -> None:
        """Makes `acquire`, `release` and `close` ready."""
        raise NotImplementedError

    acquire: Any
    release: Any

    def close(self) -> None:
        """Ends what `open` began."""


class Ipcmutex(Kind):
    """ipcmutex.Mutex of a file."""

    url = "mpm:{file}"

    def open(self) -> None:
        import ipcmutex

        self.mutex = ipcmutex.Mutex(self.url.format(**self.params))
        self.acquire, self.release, self.close = self.mutex.acquire, self.mutex.release, self.mutex.close  # type: ignore[method-assign]


class IpcmutexUnix(Ipcmutex):
    """ipcmutex.Mutex in Redis."""

    url = "rpm+redis+unix://{socket}?id={id}&ttl={ttl_ms}ms"


class Threading(Kind):
    """threading.Lock"""

    alone = "it lives in one process"

    def open(self) -> None:
        import threading

        lock = threading.Lock()
        self.acquire, self.release = lock.acquire, lock.release


class Multiprocessing(Kind):
    """multiprocessing.Lock, inherited by the children"""

    def prepare(self) -> None:
        import multiprocessing

        self.lock = multiprocessing.get_context("fork").Lock()

    def open(self) -> None:
        self.acquire, self.release = self.lock.acquire, self.lock.release


class FileLock(Kind):
    """filelock.FileLock"""

    def open(self) -> None:
        import filelock

        lock = filelock.FileLock(self.file)
        self.acquire, self.release = lock.acquire, lock.release


class Fasteners(Kind):
    """fasteners.InterProcessLock"""

    def open(self) -> None:
        import fasteners

        lock = fasteners.InterProcessLock(self.file)
        self.acquire, self.release = lock.acquire, lock.release


class Portalocker(Kind):
    """portalocker.Lock, with a timeout that no wait here reaches: without one it fails at once"""

    def open(self) -> None:
        import portalocker

        lock = portalocker.Lock(self.file, timeout=3600)
        self.acquire, self.release = lock.acquire, lock.release


class RedisPy(Kind):
    """redis.Redis().lock()"""

    def open(self) -> None:
        import redis

        self.client = redis.Redis(unix_socket_path=self.params["socket"])
        self.lock = self.client.lock(self.params["id"], timeout=int(self.params["ttl_ms"]) / 1000)
        self.acquire, self.release = self.lock.acquire, self.lock.release

    def close(self) -> None:
        self.client.close()


class PythonRedisLock(Kind):
    """redis_lock.Lock"""

    def open(self) -> None:
        import redis
        import redis_lock

        self.client = redis.StrictRedis(unix_socket_path=self.params["socket"])
        lock = redis_lock.Lock(self.client, self.params["id"], expire=int(self.params["ttl_ms"]) // 1000)
        self.acquire, self.release = lock.acquire, lock.release

    def close(self) -> None:
        self.client.close()


class Nothing(Kind):
    """A lock that is none: the exclusion checks must find it out."""

    def open(self) -> None:
        self.acquire = self.release = functools.partial(bool, 0)


KINDS: dict[str, type[Kind]] = {
    "ipcmutex": Ipcmutex,
    "ipcmutex-unix": IpcmutexUnix,
    "threading": Threading,
    "multiprocessing": Multiprocessing,
    "filelock": FileLock,
    "fasteners": Fasteners,
    "portalocker": Portalocker,
    "redis-py": RedisPy,
    "python-redis-lock": PythonRedisLock,
    "none": Nothing,
}
