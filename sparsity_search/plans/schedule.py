"""The steps of a plan with their times, before they are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsity_search.plans.plan import UNIFORM, Plan, PlanStep


class StepPrices(Protocol):
    """Seconds that steps take on a machine."""

    @property
    def save(self) -> float:
        """To write the checkpoint and the report."""

    def judge(self, pruner: str = "") -> float:
        """To prune the model to a candidate and to score it; by default with the plan's pruner."""

    def allocate(self, step: PlanStep) -> float:
        """To allocate a profile, and to judge it."""

    def begin_search(self) -> float:
        """To begin a study, and to judge its result: the least time for one."""


@dataclass(frozen=True)
class PlannedStep:
    """A step of a schedule.

    Attributes:
        name: What it makes.
        pruner: Pruner that its candidates are rebuilt with; empty for that of the plan.
        seconds: Time that it will take; None if rounds limit it alone.
        fits: Whether there is time for it.
        why: What was measured of it, in words; empty for a guess.
    """

    name: str
    pruner: str
    seconds: float | None
    fits: bool = True
    why: str = ""


@dataclass(frozen=True)
class Schedule:
    """What a job will do.

    Attributes:
        steps: The steps.
        pruner: Pruner that candidates are rebuilt with.
        text: Where the text comes from.
        memory: Bytes in memory at most, without a forward pass and the libraries.
        disk: Bytes on disk: the checkpoint, and what is kept of a search.
        spent: Seconds that the job has taken until now.
    """

    steps: tuple[PlannedStep, ...]
    pruner: str
    text: str
    memory: int
    disk: int
    spent: float = 0.0


def reserve(steps: Sequence[PlanStep], prices: StepPrices) -> float:
    """Return the seconds that a step leaves for the end of a job: pruning anew, and saving.

    A study, which would take all, leaves time for all later steps that prune anew. Allocators
    leave it for the first one, which brings most.

    Args:
        steps: The step and all later ones.
        prices: What steps take.
    """
    step, *later = steps
    pruners = _list_rebuilds(later)
    if step.search is None:
        pruners = pruners[:1] if step.allocate is not None else []
    return prices.save + sum(map(prices.judge, pruners))


def has_time(steps: Sequence[PlanStep], prices: StepPrices, left: float) -> bool:
    """Return whether there is time for an allocation.

    What pruning anew takes is left for it, unless even that does not fit.

    Args:
        steps: The step and all later ones.
        prices: What steps take.
        left: Seconds that are left for all of them.
    """
    kept = reserve(steps, prices)
    return prices.allocate(steps[0]) + (kept if kept <= left else prices.save) <= left


def _list_rebuilds(steps: Sequence[PlanStep]) -> list[str]:
    """Return the names of the pruners that prune anew in steps."""
    return [step.rebuild.name for step in steps if step.rebuild is not None]


def plan_steps(
    plan: Plan, prices: StepPrices, left: float, grace: float = 0.0
) -> tuple[PlannedStep, ...]:
    """Return the steps that a job will make as it looks before them.

    Args:
        plan: The plan.
        prices: What steps take.
        left: Seconds that are left for them; infinite without a limit.
        grace: Seconds by which pruning anew may be late.
    """
    baseline = prices.judge()
    found = [PlannedStep(UNIFORM, "", baseline, why="the baseline")]
    left -= baseline
    for index in range(len(plan.steps)):
        for planned in _plan_step(plan.steps[index:], prices, left, grace):
            found.append(planned)
            left -= (planned.seconds or 0.0) if planned.fits else 0.0
    found += _plan_baseline(found, prices, left + grace - prices.save)
    return (*found, PlannedStep("checkpoint and report", "", prices.save, why="-"))


def _plan_baseline(
    steps: Sequence[PlannedStep], prices: StepPrices, left: float
) -> Iterator[PlannedStep]:
    """Yield the uniform profile with the last pruner of a schedule, to compare with."""
    pruners = [step.pruner for step in steps if step.pruner and step.fits]
    if pruners:
        seconds = prices.judge(pruners[-1])
        yield PlannedStep(f"{UNIFORM}, pruned anew", pruners[-1], seconds, seconds <= left)


def _plan_step(
    steps: Sequence[PlanStep], prices: StepPrices, left: float, grace: float
) -> Iterator[PlannedStep]:
    """Yield what the first of steps makes in the time that is left."""
    step, kept = steps[0], reserve(steps, prices)
    if step.allocate is not None:
        seconds, made = prices.allocate(step), 0
        while made < step.repeat and has_time(steps, prices, left - made * seconds):
            made += 1
        times = f", at most {made} times" if made > 1 else ""
        name, total = f"{step.allocate}{times}", max(1, made) * seconds
        yield PlannedStep(name, "", total, made > 0, step.why)
    elif step.rebuild is not None:
        pruner = step.rebuild.name
        seconds = prices.judge(pruner)
        fits = seconds + kept <= left + grace
        yield PlannedStep("the best, pruned anew", pruner, seconds, fits, step.why)
    else:
        left -= kept
        limited, least = left < float("inf"), prices.begin_search()
        seconds_left = max(left, least) if limited else None
        yield PlannedStep("search", "", seconds_left, least <= left, step.why)
