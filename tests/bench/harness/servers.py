"""A Redis server of our own, on a unix socket and a free port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path


class Redis:
    """Runs from construction to `close`."""

    def __init__(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if not program:
            raise SystemExit("bench: redis-server is missing: apt-get install redis-server")
        self.folder = Path(tempfile.mkdtemp(prefix="ipcmutex-bench-redis-"))
        self.socket = self.folder / "redis.sock"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
        self.process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no",
             "--dir", str(self.folder), "--logfile", str(self.folder / "log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 10
        while b"PONG" not in self.ask(b"PING"):
            if time.monotonic() > limit or self.process.poll() is not None:
                raise SystemExit(f"bench: redis-server does not start: {self.folder / 'log'}")
            time.sleep(0.02)

    def ask(self, command: bytes) -> bytes:
        """One inline command; nothing if the server is not there."""
        try:
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(str(self.socket))
                wire.sendall(command + b"\r\n")
                return wire.recv(65536)
        except OSError:
            return b""

    def info(self, section: str) -> dict[str, str]:
        """What INFO tells."""
        lines = self.ask(b"INFO " + section.encode()).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self) -> int:
        """How many scripts were called."""
        stats = self.info("commandstats")
        return sum(int(told.split(",")[0].removeprefix("calls=")) for name, told in stats.items()
                   if name.startswith(("cmdstat_eval", "cmdstat_fcall")))

    def close(self) -> None:
        """Ends the server."""
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
