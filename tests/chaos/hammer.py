"""A participant of the chaos runs in Python; ../src/chaos/record.rs says what it tells, and README.md what all of them do."""

import asyncio
import mmap
import os
import random
import socket
import struct
import sys
import threading
import time
import traceback

import ipcmutex

ASKED, ENTERED, CHECKED, LEFT, RELEASED, GAVE_UP, DID = range(1, 8)
FORK, CLOSE, CANCEL = range(1, 4)
CHILD = 0x8000
CANCELED = ipcmutex.Canceled.code

url, instance, seed = os.environ["CHAOS_URL"], int(os.environ["CHAOS_INSTANCE"]), int(os.environ["CHAOS_SEED"])
log = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND)
shared = mmap.mmap(os.open(os.environ["CHAOS_CELL"], os.O_RDWR), 32)
cell = memoryview(shared).cast("Q")
now = time.monotonic_ns
driver = os.getppid()  # nobody goes on without it


class Fence:
    """The resource that refuses old tokens."""

    def __init__(self):
        self.lock = threading.Lock()
        self.socket = None
        if "CHAOS_FENCE" in os.environ:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(os.environ["CHAOS_FENCE"])

    def write(self, who, token):
        if self.socket:
            with self.lock:
                self.socket.sendall(struct.pack("<2Q", token, who))
                if len(self.socket.recv(1)) != 1:
                    raise EOFError("the fence has gone")


def code_of(call):
    try:
        call()
    except ipcmutex.IpcMutexError as error:
        return error.code
    return 0


class Entrant:
    def __init__(self, number, entrant):
        self.who = instance << 16 | number
        self.random = random.Random(seed ^ entrant << 32)
        self.child = 0

    def tell(self, kind, at=None, token=0, a=0, b=0, c=0):
        os.write(log, struct.pack("<8Q", kind, now() if at is None else at, self.who, token, a, b, c, 0))

    def enter(self, hold):
        """With a hold just acquired; what `leave` needs."""
        entered, met, cell[0] = now(), cell[0], self.who
        seen = cell[1]
        self.tell(ENTERED, entered, hold.token, int(hold.abandoned), met, seen)
        at = now()
        self.tell(CHECKED, at, 0, code_of(hold.check))
        fence.write(self.who, hold.token)
        return seen

    def leave(self, hold, seen):
        cell[1] = seen + 1
        fence.write(self.who, hold.token)
        at = now()
        code = code_of(hold.check)
        stood, cell[0] = cell[0], 0
        self.tell(LEFT, at, 0, code, stood)

    def linger(self):
        return self.random.random() * 0.0015 if self.random.randrange(4) == 0 else 0

    def acquire(self, mutex, timeout, forking=False, closing=False):
        self.tell(ASKED)
        try:
            hold = mutex.hold(timeout=timeout)
        except ipcmutex.IpcMutexError as error:
            return self.tell(GAVE_UP, a=error.code)
        seen = self.enter(hold)
        if forking:
            self.fork(mutex)
        time.sleep(self.linger())
        self.leave(hold, seen)
        self.tell(RELEASED, a=code_of(mutex.close if closing else hold.release))

    def fork(self, mutex):
        """A forked child is a participant of its own for one acquisition; its parent goes on and reaps it later."""
        self.reap()
        self.tell(DID, a=FORK)
        self.child = os.fork()
        if self.child == 0:
            try:
                fence.socket = None
                self.who |= CHILD
                self.acquire(mutex, 0.05)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)

    def reap(self):
        if self.child:
            os.waitpid(self.child, 0)
            self.child = 0

    def open(self):
        while True:
            try:
                return ipcmutex.Mutex(url)
            except ipcmutex.Unavailable as error:
                self.tell(ASKED)
                self.tell(GAVE_UP, a=error.code)
                time.sleep(0.02)

    def close_while_waiting(self):
        mutex = self.open()
        hasty = threading.Timer(self.random.random() * 0.005, mutex.close)
        self.tell(ASKED)
        self.tell(DID, a=CLOSE)
        hasty.start()
        try:
            mutex.hold()
        except ipcmutex.IpcMutexError as error:
            self.tell(GAVE_UP, a=error.code)
        else:
            # Granted before it was closed: then closing released it.
            self.tell(GAVE_UP, a=ipcmutex.Closed.code)
        hasty.join()

    def run(self):
        mutex = self.open()
        while not cell[2] and os.getppid() == driver:
            time.sleep(self.random.random() * 0.003)
            how = self.random.randrange(100)
            if how < 50:
                self.acquire(mutex, None)
            elif how < 70:
                self.acquire(mutex, self.random.random() * 0.03)
            elif how < 80:
                self.acquire(mutex, 0)
            elif how < 84:
                self.close_while_waiting()
            elif how < 88:
                own = self.open()
                self.tell(DID, a=CLOSE)
                self.acquire(own, 0.03, closing=True)
                code_of(own.close)
            elif how < 90:
                self.fork(mutex)
            elif how < 92:
                self.acquire(mutex, None, forking=True)
            else:
                self.acquire(mutex, None)
        self.reap()

    async def run_in_loop(self):
        opened = None
        while opened is None:
            try:
                opened = ipcmutex.AsyncMutex(url)
            except ipcmutex.Unavailable as error:
                self.tell(ASKED)
                self.tell(GAVE_UP, a=error.code)
                await asyncio.sleep(0.02)
        while not cell[2] and os.getppid() == driver:
            await asyncio.sleep(self.random.random() * 0.003)
            self.tell(ASKED)
            wait = asyncio.ensure_future(opened.hold())
            patience = self.random.random() * 0.005 if self.random.randrange(3) == 0 else None
            try:
                # Cancels it when the time is over.
                hold = await asyncio.wait_for(wait, patience)
            except asyncio.TimeoutError:
                self.tell(DID, a=CANCEL)
                self.tell(GAVE_UP, a=CANCELED)
                continue
            except ipcmutex.IpcMutexError as error:
                self.tell(GAVE_UP, a=error.code)
                continue
            seen = self.enter(hold)
            await asyncio.sleep(self.linger())
            self.leave(hold, seen)
            try:
                await hold.release()
                code = 0
            except ipcmutex.IpcMutexError as error:
                code = error.code
            self.tell(RELEASED, a=code)


def guarded(run):
    try:
        run()
    except BaseException:
        traceback.print_exc()
        os._exit(3)


fence = Fence()
threads = [threading.Thread(target=guarded, args=(Entrant(number, number).run,)) for number in (1, 2)]
threads.append(threading.Thread(target=guarded, args=(lambda: asyncio.run(Entrant(3, 3).run_in_loop()),)))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(0)
