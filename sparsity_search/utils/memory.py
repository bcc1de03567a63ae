"""The memory of the machine."""

from __future__ import annotations

import math
import os


def measure_memory() -> float:
    """Return the bytes of the machine's memory; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return math.inf
