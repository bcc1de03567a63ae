"""The steps of a search as rows of texts, and what they brought for their time, in words."""

from __future__ import annotations

from collections.abc import Sequence

from sparsity_search.report.rows import describe_pruner
from sparsity_search.report.table import (
    NONE,
    Row,
    format_duration,
    format_number,
    format_percent,
)
from sparsity_search.runs.gains import Gain, list_gains, measure_change
from sparsity_search.runs.record import RunRecord
from sparsity_search.runs.trail import StepRecord

#: Columns of `list_step_rows`; the first two are text.
STEP_HEADER: Row = (
    *("step", "pruner", "time", "time of the job", "score", "perplexity"),
    *("change", "standard error", "best so far"),
)

#: A time without gain that is told, as a fraction of the job.
_IDLE = 0.1


def list_step_rows(record: RunRecord) -> list[Row]:
    """Return one row for each candidate, in their order."""
    return [_format_gain(gain) for gain in list_gains(record.steps)]


def summarise_steps(record: RunRecord) -> str:
    """Return in one sentence what the last part of the job brought; empty for one candidate.

    A last pruner changes all scores, whatever the steps before it brought: it is told apart.
    """
    if len(record.steps) < 2:
        return ""
    rebuilt = [step for step in record.steps if step.name in record.rebuilt]
    steps = [step for step in record.steps if step.name not in record.rebuilt]
    spent = sum(step.seconds for step in rebuilt)
    if [step.name for step in steps if step.best][-1:] != [steps[0].name]:
        # the baseline is rebuilt to compare with, and not to be shipped
        rebuilt = [step for step in rebuilt if step.profile != steps[0].profile]
    end = max(record.seconds - spent, *(step.elapsed for step in steps))
    job = format_duration(max(record.seconds, end))
    until = f"of {job}"
    if rebuilt:
        until = f"before {describe_pruner(rebuilt[0].pruner)}, of {job} in all,"
    return f"The last {_tell_last_gain(steps, end, until)}{_tell_rebuild(steps, rebuilt)}."


def _tell_last_gain(steps: Sequence[StepRecord], end: float, until: str) -> str:
    best = [step for step in steps if step.best] or list(steps[:1])
    last, before = best[-1], best[-2] if len(best) > 1 else None
    idle = end - last.elapsed
    if before is None:
        return f"{format_duration(idle)} {until} did not lower the score of {last.name}"
    gain = f"{_format_gained(last, before)} ({last.name})"
    if idle > _IDLE * end:
        told = f"{format_duration(idle)} {until} did not lower the score"
        return f"{told}; the gain before was {gain}"
    return f"{format_duration(end - before.elapsed)} {until} lowered the score by {gain}"


def _tell_rebuild(steps: Sequence[StepRecord], rebuilt: Sequence[StepRecord]) -> str:
    if not rebuilt:
        return ""
    spent = format_duration(sum(step.seconds for step in rebuilt))
    told = f"; {describe_pruner(rebuilt[0].pruner)}"
    best = [step for step in steps if step.best]
    after = [step for step in rebuilt if step.best]
    if not best or not after:
        return f"{told} did not lower it in {spent}"
    return f"{told} lowered it by {_format_gained(after[-1], best[-1])} in {spent}"


def _format_gained(step: StepRecord, before: StepRecord) -> str:
    change = measure_change(step, before)
    return NONE if change is None else format_percent(-change)


def _format_gain(gain: Gain) -> Row:
    step, change, error = gain.step, gain.change, gain.error
    return (
        step.name,
        describe_pruner(step.pruner),
        format_duration(step.seconds),
        format_duration(step.elapsed),
        format_number(step.score),
        format_number(step.row.get("perplexity")),
        NONE if change is None else f"{100 * change:+.2f} %",
        NONE if error is None else format_percent(error),
        "yes" if step.best else "no",
    )
