"""Command lines of this package in processes of their own, for benchmarks of whole commands."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Commands:
    """Runs commands one at a time.

    Attributes:
        threads: Threads of each.
        lock: Descriptor of a lock, which each command holds while it lives.
    """

    threads: int
    lock: int

    def start(self, arguments: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
        """Start a command; its output is appended to a file."""
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "sparsity_search", *map(str, arguments)],
                env={**os.environ, **threads},
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock],
            )

    def run(self, arguments: Sequence[object], log: Path) -> None:
        """Run a command to its end; it is killed when this process is told to stop.

        Raises:
            CalledProcessError: It failed.
        """
        process = self.start(arguments, log)
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code:
            raise subprocess.CalledProcessError(code, list(map(str, arguments)))


@contextmanager
def take_turns(folder: Path, threads: int) -> Iterator[Commands]:
    """Yield a runner of commands when no other one works in a folder, nor a command it left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for a command that works in {folder}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Commands(threads, lock.fileno())
