"""Monitors that are several, and one that sends what it sees to a tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from sparsity_search.config.schema import RunConfig, flatten
from sparsity_search.engine.monitor import Advance, Monitor
from sparsity_search.interfaces.tracker import Tracker, Tracking
from sparsity_search.plans.schedule import Schedule
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.redact import redact
from sparsity_search.runs.trail import StepRecord
from sparsity_search.trials.history import Measurement


class MonitorGroup(Monitor):
    """Several monitors that watch one job; each may stop it.

    Args:
        monitors: In the order in which they are told.
    """

    def __init__(self, *monitors: Monitor) -> None:
        super().__init__()
        self._monitors = monitors

    @contextmanager
    def show(self, name: str, total: int | None) -> Iterator[Advance]:
        """Show a step with each monitor."""
        with ExitStack() as stack:
            shown = [stack.enter_context(each.show(name, total)) for each in self._monitors]

            def advance(*parts: object) -> None:
                for each in shown:
                    each(*parts)

            yield advance

    def measured(self, measurement: Measurement, top: int) -> None:
        """Tell each monitor of a measurement."""
        for each in self._monitors:
            each.measured(measurement, top)

    def judged(self, record: StepRecord) -> None:
        """Tell each monitor of a candidate."""
        for each in self._monitors:
            each.judged(record)

    def tell(self, message: str) -> None:
        """Give each monitor a message."""
        for each in self._monitors:
            each.tell(message)

    def planned(self, schedule: Schedule) -> None:
        """Tell each monitor of the plan."""
        for each in self._monitors:
            each.planned(schedule)

    def at_step(self, name: str, number: int, total: int, left: float) -> None:
        """Tell each monitor where the job is."""
        for each in self._monitors:
            each.at_step(name, number, total, left)

    def close(self) -> None:
        """Let the steps that end a stopped job run to their end."""
        for each in self._monitors:
            each.close()

    def stopped(self) -> bool:
        """Return whether any monitor stops the job."""
        return any(each.stopped() for each in self._monitors)


class TrackingMonitor(Monitor):
    """Sends scores of the search, and figures of candidates as they would ship, to a tracker.

    Args:
        begin: Begins the experiment; it is called when there is something to send.
    """

    def __init__(self, begin: Callable[[], Tracking]) -> None:
        super().__init__()
        self._begin = begin
        self._tracking: Tracking | None = None
        self._count = self._tokens = 0

    def measured(self, measurement: Measurement, top: int) -> None:
        """Send a score of the top rung, with the tokens measured so far."""
        self._tokens += measurement.fidelity.tokens
        if measurement.rung == top:
            values = {"score": measurement.score.value, "seconds": measurement.elapsed}
            self._log("search", {**values, "tokens": self._tokens, "round": measurement.round})

    def judged(self, record: StepRecord) -> None:
        """Send the figures of a candidate."""
        names = ("score", "perplexity", "sparsity", "saving")
        figures = {name: record.row[name] for name in names if record.row.get(name) is not None}
        self._log("candidate", {**figures, "minutes": record.elapsed / 60, "best": record.best})

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        """End the experiment, if it has begun, with the files that exist."""
        if self._tracking is None:
            return
        for path in files:
            if path.exists():
                self._tracking.attach(path)
        self._tracking.close(failed=failed)

    def _log(self, group: str, values: Mapping[str, float]) -> None:
        if self._tracking is None:
            self._tracking = self._begin()
        finite = {f"{group}/{k}": float(v) for k, v in values.items() if math.isfinite(v)}
        self._tracking.log(finite, self._count)
        self._count += 1


@contextmanager
def track(
    monitor: Monitor, trackers: Sequence[Tracker], config: RunConfig, directory: RunDirectory
) -> Iterator[Monitor]:
    """Yield a monitor that tells trackers too; at the end they get profile and report.

    Args:
        monitor: Watches the job.
        trackers: The tools.
        config: The settings to record, without credentials.
        directory: The run directory.
    """
    hidden = redact(config.model_dump(mode="json"), (config.study.storage or "",))
    facts = (directory.path.name, flatten(hidden), directory.path)
    monitors = [TrackingMonitor(partial(tracker.open, *facts)) for tracker in trackers]
    failed = True
    try:
        yield MonitorGroup(monitor, *monitors) if monitors else monitor
        failed = False
    finally:
        for each in monitors:
            each.finish([directory.profile_file, directory.report_file], failed=failed)
