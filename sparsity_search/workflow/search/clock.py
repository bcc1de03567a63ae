"""The clock of a search: the time that is left of the whole job."""

from __future__ import annotations

import math
import time

#: Part of the time by which a job may be late.
_GRACE = 0.02


class Clock:
    """The time of a job over all its sessions.

    Args:
        minutes: Time that the job may take; None for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.limit = math.inf if minutes is None else 60 * minutes
        self._started = time.monotonic()

    def resume(self, spent: float) -> None:
        """Add the seconds that earlier sessions took."""
        self._started -= spent

    @property
    def elapsed(self) -> float:
        """Seconds that the job has taken."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.limit - self.elapsed)

    @property
    def grace(self) -> float:
        """Seconds by which a last step may be late, rather than be left out."""
        return _GRACE * self.limit
