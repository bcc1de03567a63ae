from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest

from sparsity_search.plans.plan import Plan, PlanStep
from sparsity_search.plans.schedule import has_time, plan_steps, reserve


@dataclass(frozen=True)
class Prices:
    """Prices that are easy to add: each has a digit of its own."""

    save: float = 1.0

    def judge(self, pruner: str = "") -> float:
        return {"": 10.0, "alps": 100.0, "admm": 1000.0}[pruner]

    def allocate(self, step: PlanStep) -> float:
        return {"lamp": 20.0, "owl": 20010.0, "gauss_newton": 40010.0}[str(step.allocate)]

    def begin_search(self) -> float:
        return 300000.0


PLAN = Plan.model_validate(
    {
        "steps": [
            {"allocate": "owl", "why": "a figure"},
            {"allocate": "gauss_newton", "repeat": 3},
            {"search": {}},
            {"rebuild": "alps"},
        ]
    }
)


def test_a_study_leaves_time_for_all_later_pruning_and_allocators_for_the_first() -> None:
    steps = (*PLAN.steps, PlanStep.model_validate({"rebuild": "admm"}))
    assert [reserve(steps[i:], Prices()) for i in range(5)] == [101, 101, 1101, 1, 1]


@pytest.mark.parametrize(("left", "fits"), [(20111, True), (20110, False)])
def test_an_allocation_leaves_time_for_the_end(left: float, fits: bool) -> None:
    assert has_time(PLAN.steps, Prices(), left) == fits


@pytest.mark.parametrize(
    ("left", "fits"),
    [(121, True), (120, False), (101, False), (100, True), (21, True), (20, False)],
)
def test_an_allocation_has_time_where_no_better_pruner_fits(left: float, fits: bool) -> None:
    steps = [PlanStep(allocate="lamp"), PlanStep.model_validate({"rebuild": "alps"})]
    assert has_time(steps, Prices(), left) == fits


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        (inf, [10, 20010, 120030, None, 100, 100, 1]),
        # 111 for the baseline and the end, 140040 for the allocations, and what is left
        (450151, [10, 20010, 120030, 310000, 100, -100, 1]),
        (440151, [10, 20010, 120030, 300000, 100, -100, 1]),
        (440150, [10, 20010, 120030, -300000, 100, 100, 1]),
        (140151, [10, 20010, 120030, -300000, 100, -100, 1]),
        (140150, [10, 20010, 80020, -300000, 100, 100, 1]),
        (60130, [10, 20010, -40010, -300000, 100, 100, 1]),
        (111, [10, -20010, -40010, -300000, 100, -100, 1]),
        (110, [10, -20010, -40010, -300000, -100, 1]),
    ],
)
def test_steps_are_made_while_there_is_time(left: float, seconds: list[float | None]) -> None:
    """What has no time is negative here."""
    steps = plan_steps(PLAN, Prices(), left)
    found = [step.seconds and (step.seconds if step.fits else -step.seconds) for step in steps]
    assert found == seconds


def test_a_study_leaves_the_time_of_the_end_whatever_the_rounding() -> None:
    prices = Prices(save=0.1)
    lefts = [310000 + number / 7 for number in range(100)]
    plan = Plan(steps=PLAN.steps[2:])
    ends = [plan_steps(plan, prices, left, grace=0.001)[2] for left in lefts]
    assert all(step.fits for step in ends)


@pytest.mark.parametrize(
    ("left", "grace", "fits"),
    [
        (110, 0.9, [False]),
        (110, 1.0, [True, False]),
        (210, 0.9, [True, False]),
        (210, 1.0, [True, True]),
    ],
)
def test_the_schedule_has_the_pruning_that_may_be_late(
    left: float, grace: float, fits: list[bool]
) -> None:
    """Pruning anew takes 100 s, for the best and for the uniform profile; 11 s go to the rest."""
    steps = plan_steps(Plan(steps=PLAN.steps[3:]), Prices(), left, grace)
    assert [step.fits for step in steps[1:-1]] == fits


def test_steps_say_how_often_with_what_and_why() -> None:
    steps = plan_steps(PLAN, Prices(), inf)
    assert [step.name for step in steps[:4]] == [
        "uniform",
        "owl",
        "gauss_newton, at most 3 times",
        "search",
    ]
    assert [step.pruner for step in steps] == ["", "", "", "", "alps", "alps", ""]
    assert steps[1].why == "a figure"
