from __future__ import annotations

import math

import pytest

from sparsity_search.recoveries.bases import schedule
from sparsity_search.recoveries.bases.schedule import StepBudget


def list_steps(budget: StepBudget) -> list[int]:
    return list(iter(budget.next, None))


def test_all_steps_without_a_limit() -> None:
    assert list_steps(StepBudget(7, math.inf)) == list(range(7))
    assert list_steps(StepBudget(7, math.inf, first=5)) == [5, 6]
    assert list_steps(StepBudget(7, 0.0)) == []


def test_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])
    budget, steps = StepBudget(1000, 100.0), 0
    while budget.next() is not None:
        clock[0] += 2.0
        steps += 1
    assert steps == 50


def test_slow_checks_cost_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])
    budget = StepBudget(1000, 100.0)
    while (step := budget.next()) is not None:
        clock[0] += 22.0 if step == 9 else 2.0
    assert 85 <= clock[0] <= 102


def test_the_rate_rises_and_falls() -> None:
    budget = StepBudget(100, math.inf)
    rates = [budget.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) <= 1
    assert 0 <= rates[-1] < 0.01


@pytest.mark.parametrize("steps", [1, 3, 4, 10, 101])
def test_the_last_step_is_checked(steps: int) -> None:
    budget = StepBudget(steps, math.inf)
    checks = [step for step in list_steps(budget) if budget.is_check(step)]
    assert checks[-1] == steps - 1
    assert len(checks) <= 4
    assert checks == sorted(checks)
    assert not budget.unchecked


def test_steps_that_the_time_cut_off_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])
    budget, checks = StepBudget(1000, 100.0), []
    while (step := budget.next()) is not None:
        clock[0] += 2.0 if step < 20 else 60.0
        checks += [step] if budget.is_check(step) else []
    assert checks
    assert budget.unchecked
