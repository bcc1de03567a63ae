"""Bisection to the last bit."""

from __future__ import annotations

from collections.abc import Callable


def bisect(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Return where a rising function reaches ``target``, or the nearer end if it never does.

    Args:
        rising: A function that does not fall between ``low`` and ``high``.
        target: The value to reach.
        low: The lower end.
        high: The upper end.

    Returns:
        The least float above ``low`` at which the function is at least ``target``; ``low`` where
        it is so already there, ``high`` where it stays below.

    >>> bisect(lambda x: x * x, 9.0, 0.0, 10.0)
    3.0
    """
    if rising(low) >= target:
        return low
    while low < (middle := (low + high) / 2) < high:
        if rising(middle) < target:
            low = middle
        else:
            high = middle
    return high
