"""What the steps of a search brought: each candidate beside the best one before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from sparsity_search.runs.trail import StepRecord


@dataclass(frozen=True)
class Gain:
    """A candidate beside the best one before it.

    Attributes:
        step: The candidate.
        change: Change of the score, as a fraction of that of the best candidate before; None for
            the first candidate, and where a score is not finite.
        error: Standard error of `change`, from the differences of the same sequences; None
            without a change, or with one sequence.
    """

    step: StepRecord
    change: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class BestTrace:
    """How the best score fell in the course of a job; one entry each a point.

    Attributes:
        elapsed: Time of the whole job in seconds, rising.
        scores: The best score so far.
    """

    elapsed: tuple[float, ...]
    scores: tuple[float, ...]


def list_gains(steps: Sequence[StepRecord]) -> list[Gain]:
    """Return the gain of each candidate, in their order."""
    found: list[Gain] = []
    best: StepRecord | None = None
    for step in steps:
        found.append(Gain(step) if best is None else _compare(step, best))
        if step.best:
            best = step
    return found


def measure_change(step: StepRecord, before: StepRecord) -> float | None:
    """Return the change of the score as a fraction of that of ``before``; None if there is none.

    A change below 0 is a gain.
    """
    mine, theirs = step.score, before.score
    if mine is None or not theirs:
        return None
    return _keep_finite((mine - theirs) / abs(theirs))


def trace_best(steps: Sequence[StepRecord]) -> BestTrace:
    """Return how the best score fell; a step of an earlier session has the time that it had."""
    best = [(s.elapsed, s.score) for s in steps if s.best and s.score is not None]
    elapsed, scores = zip(*sorted(best), strict=True) if best else ((), ())
    return BestTrace(elapsed, tuple(accumulate(scores, min)))


def _compare(step: StepRecord, before: StepRecord) -> Gain:
    change = measure_change(step, before)
    if change is None:
        return Gain(step)
    return Gain(step, change, _estimate_error(step, before, change))


def _estimate_error(step: StepRecord, before: StepRecord, change: float) -> float | None:
    """Return the standard error of a change.

    A score need not be the mean of its parts (perplexity is not), so the parts' error is scaled
    to the change: both have the same quotient, the t of the paired test.
    """
    if len(step.parts) != len(before.parts) or len(step.parts) < 2:
        return None
    with np.errstate(all="ignore"):  # parts of a broken model are infinite
        differences = np.subtract(step.parts, before.parts)
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        mean = abs(float(differences.mean()))
    scale = abs(change) / mean if mean else 0.0
    return _keep_finite(error * scale)


def _keep_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
