from __future__ import annotations

from typing import Any

import pytest

from sparsity_search.engine.estimate import SupernetEstimate
from sparsity_search.engine.job import SearchJob
from sparsity_search.plans.plan import Plan
from sparsity_search.workflow.search.clock import Clock
from sparsity_search.workflow.search.costs import StepCosts, describe_schedule

STUDY = {"search": {"supernet": {"store": "disk"}}}


def make_plan(*steps: dict[str, Any]) -> Plan:
    return Plan.model_validate({"steps": steps})


def descend(pruner: Any, **settings: Any) -> dict[str, Any]:
    return {"allocate": "gauss_newton", "settings": {"pruner": pruner, **settings}}


def test_copies_that_an_allocator_makes_take_time_and_disk(job: SearchJob) -> None:
    plan = make_plan(descend("sparsegpt"))
    (step,) = plan.steps
    costs = StepCosts.measure(job, plan)
    without = StepCosts(job, costs.study, costs.machine, costs.search, costs.rebuilds, {})
    known = SupernetEstimate(1000.0, 2**40)
    given = StepCosts(
        job, costs.study, costs.machine, costs.search, costs.rebuilds, {step.allocation: known}
    )
    assert given.allocate(step) - without.allocate(step) == pytest.approx(1000)
    assert (given.copies(step), without.copies(step)) == (2**40, 0)
    disk = [describe_schedule(job, plan, each, Clock(None)).disk for each in (given, without)]
    assert disk[0] - disk[1] == 2**40


@pytest.mark.parametrize(
    ("pruner", "copies"),
    [("sparsegpt", True), ("wanda", False), ({"name": "sparsegpt", "pattern": "2:4"}, False)],
)
def test_which_allocators_make_copies(job: SearchJob, pruner: Any, copies: bool) -> None:
    costs = StepCosts.measure(job, make_plan(descend(pruner)))
    assert bool(costs.supernets) == copies


def test_more_levels_take_more_disk(job: SearchJob) -> None:
    plan = make_plan(*(descend("sparsegpt", reach=0.05, steps=steps) for steps in (1, 4)))
    costs = StepCosts.measure(job, plan)  # each step of the one plan has its own
    few, many = (costs.copies(step) for step in plan.steps)
    assert few > 0
    assert many == pytest.approx(3 * few, rel=0.2)


def test_a_study_is_estimated_with_its_own_settings(job: SearchJob) -> None:
    """Its supernet was taken for one in memory, and left out where it did not fit."""
    disk, memory = (StepCosts.measure(job, make_plan(step)) for step in (STUDY, {"search": {}}))
    assert disk.study.supernet.store == "disk"
    assert disk.memory < memory.memory
    steps = make_plan(STUDY)
    found = [describe_schedule(job, steps, each, Clock(None)).disk for each in (disk, memory)]
    assert found[0] - found[1] == disk.search.supernet_bytes


def test_a_study_has_time_for_twenty_rounds(job: SearchJob) -> None:
    costs = StepCosts.measure(job, make_plan({"search": {}}))
    rounds = costs.begin_search() - costs.prepare_search() - costs.judge()
    assert rounds == pytest.approx(20 * costs.search.round_seconds)


class StoppedClock(Clock):
    """A clock that stands still."""

    @property
    def left(self) -> float:
        return self.limit


@pytest.mark.parametrize(("share", "fits"), [(0.97, False), (0.99, True)])
def test_the_schedule_has_the_grace_of_the_clock(job: SearchJob, share: float, fits: bool) -> None:
    plan = make_plan({"rebuild": "sparsegpt"})
    costs = StepCosts.measure(job, plan)
    needed = costs.judge() + costs.judge("sparsegpt") + costs.save
    schedule = describe_schedule(job, plan, costs, StoppedClock(share * needed / 60))
    assert schedule.steps[1].fits == fits
