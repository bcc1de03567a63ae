"""Monitors: a job reports its steps to one, and asks it whether to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparsity_search.plans.schedule import Schedule
from sparsity_search.runs.trail import StepRecord
from sparsity_search.trials.history import Measurement

#: Function to call after each part of a step.
Advance = Callable[..., None]


class Monitor:
    """A monitor of a job. This base class shows nothing and never stops the job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Run one step of a job; its time is added to `seconds`.

        Args:
            name: Name of the step, for people.
            total: Number of its parts, if known.
        """
        started = time.monotonic()
        with self.show(name, total) as advance:
            yield advance
        spent = time.monotonic() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)

    @contextmanager
    def show(self, name: str, total: int | None) -> Iterator[Advance]:
        """Show a step while it runs."""
        del name, total
        yield lambda *_: None

    def measured(self, measurement: Measurement, top: int) -> None:
        """Show a measurement; ``top`` is the index of the ladder's last rung."""

    def judged(self, record: StepRecord) -> None:
        """Show a candidate that is pruned as it would be shipped, and scored."""

    def tell(self, message: str) -> None:
        """Show a message that cannot wait for the end of a step."""

    def planned(self, schedule: Schedule) -> None:
        """Show what a search is going to do."""

    def at_step(self, name: str, number: int, total: int, left: float) -> None:
        """Show which step of a plan is made.

        Args:
            name: What it makes, for people.
            number: Its number, from 1 on.
            total: Number of steps.
            left: Seconds that are left of the whole job; infinite without a limit.
        """

    def close(self) -> None:
        """Let the steps that end a stopped job run to their end."""

    def stopped(self) -> bool:
        """Return whether the search must stop before its next measurement."""
        return False
