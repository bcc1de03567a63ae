"""Claims: how several processes share the measurements of one study.

All processes run the same loop on the same store, so they agree on the candidates to measure. A
claim assigns one candidate to a process. It is a lock on a file, which the system frees even if
its owner crashes: nothing has to be cleaned up, and no process waits for one that has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout


class Claims:
    """The claims of one worker.

    Args:
        folder: Folder shared by the workers of a study; it is made if missing.

    Attributes:
        seat: Number of this worker: the lowest that no other running worker has.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for self.seat in count():
            self._own = FileLock(folder / f"seat-{self.seat}")
            if _try_acquire(self._own):
                break

    def order(self, n: int) -> Sequence[int]:
        """Return the places ``0 … n - 1`` in this worker's order.

        Each worker begins at a different place, so that workers seldom meet and each measures
        neighbours, which have equal first genes.
        """
        first = int(n * _van_der_corput(self.seat))
        return [*range(first, n), *range(first)]

    @contextmanager
    def claim(self, place: int) -> Iterator[bool]:
        """Try to hold a place without waiting, and yield whether this worker holds it."""
        lock = FileLock(self._folder / f"place-{place}")
        mine = _try_acquire(lock)
        try:
            yield mine
        finally:
            if mine:
                lock.release()


def _try_acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _van_der_corput(index: int) -> float:
    """Return an entry of 0, 1/2, 1/4, 3/4, 1/8, …, whose beginnings are evenly spread.

    >>> [_van_der_corput(i) for i in range(5)]
    [0.0, 0.5, 0.25, 0.75, 0.125]
    """
    return int(f"{index:b}"[::-1], 2) / 2 ** len(f"{index:b}") if index else 0.0
