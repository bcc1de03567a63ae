"""The progress of a job for people: a bar, or plain lines without a terminal."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from sparsity_search.cli.output import OUTPUT
from sparsity_search.engine.monitor import Advance, Monitor
from sparsity_search.errors import escape_controls
from sparsity_search.plans.schedule import Schedule
from sparsity_search.report.table import NONE, format_duration
from sparsity_search.trials.history import Measurement

if TYPE_CHECKING:
    from sparsity_search.runs.record import RunRecord
    from sparsity_search.workflow.recover import RecoveryResult

#: Width of the table of a run: shorter, its names would be cut.
_RUN = 100
# names are shown as they are: brackets are no styles, and colons no pictures
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
_out = Console(**_PLAIN)
err = Console(stderr=True, **_PLAIN)


def silence_libraries() -> None:
    """Silence the progress bars and chatter of the libraries, unless ``-v`` asks for them."""
    if OUTPUT.verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
        return
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
    """Print plain text unless the result is JSON; the terminal breaks its lines."""
    if OUTPUT.json:
        return
    _out.print(escape_controls(text), soft_wrap=True)


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "l", width: int = 0
) -> None:
    """Print a table unless the result is JSON.

    Args:
        header: Names of the columns.
        rows: The cells.
        align: A letter for each column: l for text, r for numbers. Further columns are numbers.
        width: Least width, also in a terminal that is narrower.
    """
    if OUTPUT.json:
        return
    result = Table(header_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for title, side in zip(header, align.ljust(len(header), "r"), strict=True):
        result.add_column(escape_controls(title), justify="left" if side == "l" else "right")
    for row in rows:
        result.add_row(*map(escape_controls, row))
    wide = _out if width <= _out.width else Console(width=width, **_PLAIN)
    wide.print(result)


def show_run(record: RunRecord) -> None:
    """Print the table of a run, its result in a sentence, and what its last steps brought."""
    from sparsity_search.report.table import list_columns, list_rows

    columns = list_columns(record)
    show_table(columns, list_rows(record), align="ll" if "pruner" in columns else "l", width=_RUN)
    for sentence in _list_sentences(record):
        say(sentence)


def describe_run(record: RunRecord) -> dict[str, Any]:
    """Return the figures of a run, for the result of a command."""
    results = record.results or {}
    return {
        "finished": record.results is not None,
        "shipped": results.get("shipped"),
        "summary": " ".join(_list_sentences(record)),
        "rows": results.get("rows", []),
        "steps": [
            {"name": step.name, "pruner": step.pruner, "best": step.best, **step.row}
            | {"seconds": step.seconds, "elapsed": step.elapsed}
            for step in record.steps
        ],
    }


def _list_sentences(record: RunRecord) -> list[str]:
    """Return the result of a run in sentences."""
    from sparsity_search.report.agreement import tell_disagreement
    from sparsity_search.report.steps import summarise_steps
    from sparsity_search.report.table import summarise

    told = (summarise(record), summarise_steps(record), tell_disagreement(record))
    return [sentence for sentence in told if sentence]


def show_recovery(found: RecoveryResult) -> None:
    """Print what a recovery brought; first, if that is nothing."""
    before, after = found.perplexity
    if after >= before:
        say("the recovered model is not better on the final text: give more text or time")
    say(f"recovery: perplexity on the final text {before:.2f} before, {after:.2f} after")
    for note in found.recovered.notes:
        say(note)


def describe_recovery(found: RecoveryResult) -> dict[str, Any]:
    """Return the figures of a recovery, for the result of a command."""
    before, after = found.perplexity
    return {
        "removed": found.profile.n_removed,
        "weights": found.profile.layout.n_weights,
        "perplexity": {"before": before, "after": after},
        "loss": {"before": found.recovered.before, "after": found.recovered.after},
        "notes": list(found.recovered.notes),
    }


def show_list(title: str, entries: Mapping[str, str]) -> None:
    """Print a title, and below it a line for each entry: its name and its description."""
    if OUTPUT.json:
        return
    _out.print(Text(title, style="bold"))
    width = max(map(len, entries), default=0)
    for name, line in entries.items():
        say(f"  {name:<{width}}  {line}")


def push(folder: Path, repo: str | None) -> str | None:
    """Upload a checkpoint to the hub if asked for, and return its address."""
    if repo is None:
        return None
    from sparsity_search.models.io.publishing import publish

    address = publish(folder, repo)
    say(f"hub:         {address}")
    return address


def show_next(commands: Mapping[str, str]) -> None:
    """Print commands that may come next, ready to copy, each after what it does."""
    say("next:")
    width = max(map(len, commands), default=0)
    for what, command in commands.items():
        say(f"  {what:<{width}}  {command}")


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
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            BarColumn(bar_width=10),
            TimeRemainingColumn(compact=True),
            _JobColumn(),
            console=err,
            expand=True,
            disable=not err.is_terminal or OUTPUT.quiet,
        )
        self._search = _Search()
        self._at = _At()

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
        self._task = self._progress.add_task(name, total=total, at=self._at)
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
        self._note(f"{escape_controls(name)}: {time.monotonic() - started:.1f} s")

    def measured(self, measurement: Measurement, top: int) -> None:
        """Show round, best score and speed, and the gain over the start if on the same tokens."""
        rounds, minutes = self._limits
        done = measurement.round if rounds else min(measurement.elapsed, 60 * (minutes or 0))
        improved = self._search.add(measurement, top)
        line = self._search.describe(measurement)
        self._progress.update(self._task, description=line, completed=done)
        if improved and not err.is_terminal:
            self._note(line)

    def at_step(self, name: str, number: int, total: int, left: float) -> None:
        """Show which step of the plan is made, and the time that is left of the job."""
        self._at = _At(number, total, time.monotonic() + left)
        self._note(f"step {number} of {total}: {escape_controls(name)}")

    def tell(self, message: str) -> None:
        """Print a message above the bar."""
        err.print(message, markup=False, soft_wrap=True)

    def planned(self, schedule: Schedule) -> None:
        """Print the steps of a plan with their times, and what they need."""
        if OUTPUT.quiet:
            return
        rows, elapsed = [], schedule.spent
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
        show_table(("step", "pruner", "takes", "done after", "measured"), rows, align="llrrl")
        needs = f"{_format_gib(schedule.memory)} of memory, {_format_gib(schedule.disk)} on disk"
        say(f"text: {schedule.text}; {needs}")

    def close(self) -> None:
        """Let the steps that end a stopped job run to their end."""
        self._closing = True

    def stopped(self) -> bool:
        """Return whether a signal asked to stop."""
        return self.signal is not None

    def _note(self, line: str) -> None:
        """Print a line of progress."""
        if not OUTPUT.quiet:
            err.print(line)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        err.print("stopping after the present step; once more to stop at once")


@dataclass(frozen=True)
class _At:
    """Where a job is.

    Attributes:
        number: Step of its plan, from 1 on; 0 outside of a plan.
        total: Number of its steps.
        end: When its time is over, by the monotonic clock; infinite without a limit.
    """

    number: int = 0
    total: int = 0
    end: float = math.inf

    def describe(self) -> str:
        """Return the step and the time that is left, at most 27 characters."""
        if not self.number:
            return ""
        step = f"step {self.number} of {self.total}"
        left = self.end - time.monotonic()
        if not math.isfinite(left):
            return step
        return f"{step}, {format_duration(max(0.0, left))} left"


class _JobColumn(ProgressColumn):
    """The step of the plan and the time that is left of the whole job."""

    def render(self, task: Task) -> Text:
        at: _At = task.fields["at"]
        return Text(at.describe())


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
