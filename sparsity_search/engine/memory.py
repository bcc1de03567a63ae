"""The memory of the machine."""

from __future__ import annotations

import math
import os

import torch


def measure_memory(device: torch.device | str) -> float:
    """Return the bytes of a device's memory; infinite where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return math.inf
