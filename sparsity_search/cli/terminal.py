"""The progress of a job for people: a bar, or plain lines without a terminal."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sparsity_search.engine.monitor import Advance, Monitor
from sparsity_search.errors import escape_controls
from sparsity_search.plans.schedule import Schedule
from sparsity_search.report.table import NONE, format_duration
from sparsity_search.trials.history import Measurement

if TYPE_CHECKING:
    from sparsity_search.runs.record import RunRecord

#: Width of the table of a run: shorter, its names would be cut.
_RUN = 100
# names are shown as they are: brackets are no styles, and colons no pictures
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
_out = Console(**_PLAIN)
err = Console(stderr=True, **_PLAIN)


def silence_libraries() -> None:
    """Silence the progress bars and chatter of the libraries; warnings stay."""
    import optuna
    import transformers

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # read when datasets is imported, which is optional
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # it reports blocks as lost that are only being moved, see models/io/offload.py
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)


def say(text: str) -> None:
    """Print plain text; the terminal breaks its lines."""
    _out.print(escape_controls(text), soft_wrap=True)


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, width: int = 0
) -> None:
    """Print a table whose first ``left`` columns are text and the others numbers.

    Args:
        header: Names of the columns.
        rows: The cells.
        left: Columns of text.
        width: Least width, also in a terminal that is narrower.
    """
    result = Table(header_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for index, title in enumerate(header):
        result.add_column(escape_controls(title), justify="left" if index < left else "right")
    for row in rows:
        result.add_row(*map(escape_controls, row))
    wide = _out if width <= _out.width else Console(width=width, **_PLAIN)
    wide.print(result)


def show_run(record: RunRecord) -> None:
    """Print the table of a run, its result in a sentence, and what its last steps brought."""
    from sparsity_search.report.steps import summarise_steps
    from sparsity_search.report.table import list_columns, list_rows, summarise

    columns = list_columns(record)
    show_table(columns, list_rows(record), left=2 if "pruner" in columns else 1, width=_RUN)
    for sentence in filter(None, (summarise(record), summarise_steps(record))):
        say(sentence)


def show_list(title: str, entries: Mapping[str, str]) -> None:
    """Print a title, and below it a line for each entry: its name and its description."""
    _out.print(Text(title, style="bold"))
    width = max(map(len, entries), default=0)
    for name, line in entries.items():
        say(f"  {name:<{width}}  {line}")


@contextmanager
def watch(rounds: int | None = None, minutes: float | None = None) -> Iterator[TerminalMonitor]:
    """Watch a job that runs a model, with the libraries silenced.

    Args:
        rounds: Limit of rounds, if the search has one.
        minutes: Limit of minutes, if it has one.
    """
    silence_libraries()
    with TerminalMonitor(rounds, minutes) as monitor:
        yield monitor


class TerminalMonitor(Monitor):
    """Shows steps and measurements, and turns Ctrl-C into a clean stop.

    Args:
        rounds: Limit of rounds, if the search has one.
        minutes: Limit of minutes, if it has one.
    """

    def __init__(self, rounds: int | None = None, minutes: float | None = None) -> None:
        super().__init__()
        self.signal: int | None = None
        self._closing = False
        self._limits = (rounds, minutes)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=err,
            disable=not err.is_terminal,
        )
        self._search = _Search()

    def __enter__(self) -> TerminalMonitor:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if self.signal is not None:
            err.print("stopped")
            raise typer.Exit(128 + self.signal) from None

    @contextmanager
    def show(self, name: str, total: int | None) -> Iterator[Advance]:
        """Show a step as a bar; a plain line when it is done where there is no terminal."""
        rounds, minutes = self._limits
        if name == "search":
            self._search = _Search()  # scores of other searches and stages do not compare
            total = rounds or (round(60 * minutes) if minutes else None)
        self._task = self._progress.add_task(name, total=total)
        started = time.monotonic()

        def advance(*_: object) -> None:
            self._progress.advance(self._task)
            if self.signal is not None and not self._closing:
                raise KeyboardInterrupt

        try:
            yield advance
        finally:
            self._progress.remove_task(self._task)
        if self.stopped() and not self._closing and name != "search":
            raise KeyboardInterrupt
        err.print(f"{escape_controls(name)}: {time.monotonic() - started:.1f} s")

    def measured(self, measurement: Measurement, top: int) -> None:
        """Show round, best score and speed, and the gain over the start if on the same tokens."""
        rounds, minutes = self._limits
        done = measurement.round if rounds else min(measurement.elapsed, 60 * (minutes or 0))
        improved = self._search.add(measurement, top)
        line = self._search.describe(measurement)
        self._progress.update(self._task, description=line, completed=done)
        if improved and not err.is_terminal:
            err.print(line)

    def tell(self, message: str) -> None:
        """Print a message above the bar."""
        err.print(message, markup=False, soft_wrap=True)

    def planned(self, schedule: Schedule) -> None:
        """Print the steps of a plan with their times, and what they need."""
        rows, elapsed = [], 0.0
        for step in schedule.steps:
            elapsed += (step.seconds or 0.0) if step.fits else 0.0
            rows.append(
                (
                    step.name,
                    step.pruner or schedule.pruner,
                    NONE if step.seconds is None else format_duration(step.seconds),
                    format_duration(elapsed) if step.fits else "no time",
                    step.why or "not measured: a guess",
                )
            )
        show_table(("step", "pruner", "takes", "done after", "measured"), rows, left=2)
        needs = f"{_format_gib(schedule.memory)} of memory, {_format_gib(schedule.disk)} on disk"
        say(f"text: {schedule.text}; {needs}")

    def close(self) -> None:
        """Let the steps that end a stopped job run to their end."""
        self._closing = True

    def stopped(self) -> bool:
        """Return whether a signal asked to stop."""
        return self.signal is not None

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        err.print("stopping after the present step; once more to stop at once")


def _format_gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


@dataclass
class _Search:
    """The course of one search, or of one stage of it."""

    first: Measurement | None = None
    best: Measurement | None = None
    count: int = 0
    started: float = 0.0

    def add(self, measurement: Measurement, top: int) -> bool:
        """Add a measurement, and return whether it is the best one of the top rung so far."""
        self.count += 1
        self.started = self.started or time.monotonic() - measurement.seconds
        self.first = self.first or measurement
        at_top = measurement.rung == top and not measurement.failed
        improved = at_top and (
            self.best is None
            or self.best.fidelity != measurement.fidelity  # fresh tokens: scores do not compare
            or measurement.score.value < self.best.score.value
        )
        if improved:
            self.best = measurement
        return improved

    def describe(self, measurement: Measurement) -> str:
        """Return a line about the search at its last measurement."""
        best, start = self.best or measurement, self.first or measurement
        speed = self.count / max(1e-9, time.monotonic() - self.started)
        gain = ""
        if start.fidelity == best.fidelity and not start.failed and start.score.value:
            gain = f" ({best.score.value / start.score.value - 1:+.1%} vs the start)"
        found = f"best {best.score.value:.4f}{gain}"
        return f"round {measurement.round}, {found}, {speed:.3g} evaluations/s"
