"""How many steps there is time for, and the rate of each."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from sparsity_search.recoveries.bases.trainable import Trained

#: Steps by whose time the number of all is set.
_SAMPLE = 3
#: How often the held-out error is measured.
_CHECKS = 4
#: Share of the steps in which the rate rises.
_WARM_UP = 0.1


class StepBudget:
    """The steps of one training: a number, or fewer if the time is short.

    The rate rises linearly over the first tenth and then falls to zero along a cosine. Without a
    time limit, equal arguments give equal steps.

    Args:
        steps: Number of steps, at most.
        seconds: Time for them; infinite without a limit.
        first: The first step, if others were made before.
    """

    def __init__(self, steps: int, seconds: float, first: int = 0) -> None:
        self.total = self._steps = steps if seconds > 0 else 0
        self._checked = first
        self._seconds, self._at, self._first = seconds, first, first
        self._started = time.monotonic()

    def next(self) -> int | None:
        """Return the number of the next step; None after the last one."""
        made = self._at - self._first
        if made >= _SAMPLE and math.isfinite(self._seconds):
            spent = time.monotonic() - self._started  # with checks of the held-out text
            fitting = int((self._seconds - spent) * made / spent)
            self.total = min(self._steps, self._at + max(0, fitting))
        if self._at >= self.total:
            return None
        self._at += 1
        return self._at - 1

    def rate(self, step: int) -> float:
        """Return the rate of a step, as a fraction of the greatest one."""
        warm = max(1.0, _WARM_UP * self.total)
        if step < warm:
            return (step + 1) / (warm + 1)
        done = (step - warm) / max(1.0, self.total - warm)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def is_check(self, step: int) -> bool:
        """Return whether the held-out error is measured after a step; it is after the last."""
        every = max(1, math.ceil(self.total / _CHECKS))
        due = step + 1 - self._checked >= every or step + 1 == self.total
        self._checked = step + 1 if due else self._checked
        return due

    @property
    def unchecked(self) -> bool:
        """Whether steps were made after the last check, because the time was over."""
        return self._at > self._checked


def group_by_size(trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """Return groups of parameters for an optimiser, each with the size of its entries."""
    return [{"params": [each.parameter], "size": each.size} for each in trained]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of each group to a multiple of its size."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["size"]
