from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.solvers import integer as module
from sparsity_search.solvers.decisions import Limits, SolverRules, pose_counts
from sparsity_search.solvers.greedy import solve_greedy, trim_steps
from sparsity_search.solvers.integer import IntegerProgramme
from tests.helpers.solver_problems import brute_force, layout_of, random_scores, scores_of, total


def programme(target: float, limits: Limits = (), **rules: object) -> tuple[IntegerProgramme, int]:
    layout = layout_of([400, 200, 1000, 600] * 2)
    bounds, budget = Bounds.of(layout), Budget(target)
    knapsack = pose_counts(layout, budget, bounds, SolverRules(limits=limits, **rules))  # type: ignore[arg-type]
    return IntegerProgramme(knapsack, bounds, limits), budget.n_removed(layout)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", [0.3, 0.62, 0.9])
def test_structures_are_the_best_of_all_choices(seed: int, target: float) -> None:
    layout = layout_of([4, 3, 4, 2], costs=[10, 25, 7, 60])
    scores = random_scores(layout, seed)
    knapsack = pose_counts(layout, Budget(target), Bounds.of(layout), SolverRules())
    losses = knapsack.losses(scores)
    found = IntegerProgramme(knapsack, Bounds.of(layout)).solve(losses, 10.0)
    assert found.gap == 0
    assert knapsack.least <= found.counts @ layout.costs <= knapsack.greatest
    assert found.counts.tolist() == knapsack.table.at(found.levels).tolist()
    assert total(losses, found.levels) == pytest.approx(brute_force(knapsack, losses), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", ["2:4", "*:4"])
def test_patterns_are_the_best_of_all_choices(seed: int, pattern: str) -> None:
    layout = layout_of([16, 64, 32, 64])
    scores = random_scores(layout, seed)
    for target in (0.2, 0.45):
        knapsack = pose_counts(
            layout, Budget(target), Bounds.of(layout), SolverRules(pattern=pattern)
        )
        losses = knapsack.losses(scores)
        found = IntegerProgramme(knapsack, Bounds.of(layout)).solve(losses, 10.0)
        best = brute_force(knapsack, losses)
        assert total(losses, found.levels) == pytest.approx(best, rel=1e-6)
        assert found.counts.sum() >= Budget(target).n_removed(layout)
        for levels in (found.levels, solve_greedy(knapsack, losses)):
            kept = trim_steps(knapsack, losses, levels)
            assert total(losses, kept) <= total(losses, levels)
            removed = total(knapsack.table.saved, kept)
            back = [w[k] - w[k - 1] for w, k in zip(knapsack.table.saved, kept, strict=True) if k]
            assert removed >= knapsack.least > removed - min(back)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_scale_of_losses_does_not_matter(scale: float) -> None:
    layout = layout_of([4, 3, 4, 2], costs=[10, 25, 7, 60])
    scores = random_scores(layout, 4)
    knapsack = pose_counts(layout, Budget(0.5), Bounds.of(layout), SolverRules())
    losses = knapsack.losses(scores)
    found = IntegerProgramme(knapsack, Bounds.of(layout)).solve([scale * v for v in losses], 10.0)
    assert total(losses, found.levels) == pytest.approx(brute_force(knapsack, losses), rel=1e-6)


LIMITS: Limits = (("q|v", (0.2, 0.3)), ("u", (0.61, 1.0)))


@pytest.mark.parametrize("target", [0.4, 0.7])
def test_limits_hold_and_the_budget_is_exact(target: float) -> None:
    problem, n_removed = programme(target, LIMITS)
    problem.check(n_removed)
    layout = problem.table.layout
    losses = problem.knapsack.losses(random_scores(layout, 0, convex=True))
    found = problem.solve(losses, 10.0)
    assert found.counts.sum() == n_removed
    roles = np.array([unit.role for unit in layout])
    for inside, low, high in ((np.isin(roles, ["q", "v"]), 0.2, 0.3), (roles == "u", 0.61, 1.0)):
        share = found.counts[inside].sum() / layout.counts[inside].sum()
        assert low <= share <= high
    away = np.abs(found.counts - problem.table.at(found.levels))
    assert (away <= 0.05 * layout.counts).all()


def test_limits_cost_little_beyond_the_best_choice_within_them() -> None:
    layout = layout_of([50, 50, 50])
    limits: Limits = (("q", (0.5, 0.6)),)
    scores = random_scores(layout, 2, convex=True)
    bounds, budget = Bounds.of(layout), Budget(0.4)
    knapsack = pose_counts(layout, budget, bounds, SolverRules(limits=limits))
    found = IntegerProgramme(knapsack, bounds, limits).solve(knapsack.losses(scores), 10.0).counts
    curves = [curve(np.arange(51)) for curve in scores.curves]
    best = min(
        curves[0][a] + curves[1][b] + curves[2][60 - a - b]
        for a, b in product(range(25, 31), range(51))
        if 0 <= 60 - a - b <= 50
    )
    assert found.sum() == 60
    assert 25 <= found[0] <= 30
    assert sum(c[k] for c, k in zip(curves, found, strict=True)) == pytest.approx(best, rel=0.02)


def test_what_closes_a_cell_is_not_free() -> None:
    # else the large unit, whose weights are dear, would give up to a step of 400
    layout = layout_of([1000, 10000])
    scores = scores_of(layout, lambda i, s: (1e3, 1e7)[i] * s**2)
    limits: Limits = (("q", (0.0, 1.0)),)
    bounds, budget = Bounds.of(layout), Budget(500 / 11000)
    knapsack = pose_counts(layout, budget, bounds, SolverRules(limits=limits))
    found = IntegerProgramme(knapsack, bounds, limits).solve(knapsack.losses(scores), 10.0).counts
    assert found.sum() == 500
    assert found[1] <= 40


def test_exact_limits_of_one_unit() -> None:
    # what the grid lacks is closed within each cell
    problem, n_removed = programme(0.5, (("d", (0.5, 0.5)), ("q", (0.333, 0.333))))
    problem = IntegerProgramme(problem.knapsack, problem.bounds, (("d", (0.5, 0.5)),))
    scores = random_scores(problem.table.layout, 1)
    found = problem.solve(problem.knapsack.losses(scores), 10.0)
    assert found.counts[[3, 7]].sum() == 600
    assert found.counts.sum() == n_removed


def test_overlapping_limits_and_tied_units() -> None:
    limits: Limits = (("q|v", (0.3, 0.42)), ("v|u", (0.4, 0.5)))
    problem, n_removed = programme(0.43, limits, tied=("block",))
    problem.check(n_removed)
    layout = problem.table.layout
    found = problem.solve(problem.knapsack.losses(random_scores(layout, 1)), 10.0)
    assert found.counts.sum() == n_removed
    assert 360 <= found.counts[[0, 1, 4, 5]].sum() <= 504
    assert 960 <= found.counts[[1, 2, 5, 6]].sum() <= 1200
    with pytest.raises(InfeasibleBudgetError, match="out of reach"):
        problem.check(round(0.8 * layout.n_weights))


def test_infeasible_limits() -> None:
    problem, _ = programme(0.5, (("u", (0.0, 0.1)),))
    with pytest.raises(InfeasibleBudgetError, match=r"0 to 0\.590909 \(0 to 2600 of 4400"):
        problem.check(2640)
    problem.check(2600)
    problem, _ = programme(0.5, (("u", (0.0, 0.1)), ("u|d", (0.9, 1.0))))
    with pytest.raises(InfeasibleBudgetError, match="within all limits"):
        problem.check(2000)
    layout = problem.table.layout
    bounds = Bounds.of(layout, 0.0, 0.5)
    knapsack = pose_counts(layout, Budget(0.4), bounds, SolverRules())
    with pytest.raises(InfeasibleBudgetError, match=r"limits of 'u' ask for 1200 to 2000"):
        IntegerProgramme(knapsack, bounds, (("u", (0.6, 1.0)),)).check(1000)
    with pytest.raises(InfeasibleBudgetError, match="no allowed counts"):
        IntegerProgramme(knapsack, bounds, (("u", (0.6, 1.0)),)).solve(
            [np.zeros(len(w)) for w in knapsack.table.saved], 10.0
        )


def test_a_window_that_no_choice_meets_is_widened() -> None:
    # units of 100 and one of 3 that is bound to go: 203 - 2 … 203 is met by no choice
    layout = layout_of([3, 1], costs=[100, 3])
    bounds = Bounds(lower=np.array([0, 0]), upper=np.array([3, 1]))
    knapsack = pose_counts(layout, Budget(250 / 303), bounds, SolverRules())
    assert (knapsack.least, knapsack.greatest) == (248, 250)
    losses = [np.arange(4.0), np.array([0.0, 1.0])]
    found = IntegerProgramme(knapsack, bounds).solve(losses, 10.0)
    assert found.counts.tolist() == [2, 0]


def test_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = programme(0.5)
    losses = problem.knapsack.losses(random_scores(problem.table.layout, 1))
    real = module.milp

    def stopped(*args: object, **kwargs: object) -> object:
        found = real(*args, **kwargs)
        found.status, found.mip_gap = 1, 0.25
        return found

    monkeypatch.setattr(module, "milp", stopped)
    assert problem.solve(losses, 10.0).gap == 0.25

    def nothing(*args: object, **kwargs: object) -> object:
        found = stopped(*args, **kwargs)
        found.x = None  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(module, "milp", nothing)
    with pytest.raises(ConfigError, match="within 10 s: raise time_limit"):
        problem.solve(losses, 10.0)
