from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsity_search.solvers.dynamic as module
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.solvers.decisions import SolverRules, pose_steps
from sparsity_search.solvers.dynamic import solve_dynamic
from sparsity_search.solvers.greedy import solve_greedy, trim_steps
from sparsity_search.solvers.lagrangian import solve_lagrangian
from tests.helpers.solver_problems import brute_force, knapsack_of, layout_of, random_scores, total

curves = st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=80)
@given(curves=curves, share=st.floats(0, 1), base=st.integers(0, 3), step=st.integers(1, 7))
def test_is_the_best_of_all_choices(
    curves: list[list[float]], share: float, base: int, step: int
) -> None:
    losses = [np.array(curve) for curve in curves]
    weights = [base + step * np.arange(len(curve)) for curve in curves]
    steps = round(share * sum(len(curve) - 1 for curve in curves))
    knapsack = knapsack_of(weights, base * len(curves) + step * steps, equal=True)
    levels = solve_dynamic(knapsack, losses)
    assert total(knapsack.table.saved, levels) == knapsack.least
    assert total(losses, levels) == pytest.approx(brute_force(knapsack, losses), abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 17, 18, 2**14])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    # the released code of the method leaves every multiple of its chunk undecided
    rng = np.random.default_rng(1)
    losses = [rng.uniform(size=n) for n in (9, 5, 9, 2, 7, 1)]
    for steps in range(28):
        knapsack = knapsack_of([range(len(loss)) for loss in losses], steps, equal=True)
        monkeypatch.setattr(module, "CHUNK", chunk)
        found = solve_dynamic(knapsack, losses)
        assert found.sum() == steps
        f = np.array([0.0])  # every total, one group after another
        for loss in losses:
            f = np.array(
                [
                    min(f[j - k] + loss[k] for k in range(len(loss)) if 0 <= j - k < len(f))
                    for j in range(len(f) + len(loss) - 1)
                ]
            )
        assert total(losses, found) == pytest.approx(f[steps], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_leaving_options_out_changes_nothing(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    layout = layout_of([60, 40, 100, 80, 20])
    scores = random_scores(layout, seed)
    knapsack = pose_steps(layout, Budget(0.63), Bounds.of(layout), SolverRules(step=0.05))
    losses = knapsack.losses(scores)
    kept = sum(map(len, module._find_useful_levels(knapsack, losses)))
    assert kept < sum(map(len, losses))
    found = total(losses, solve_dynamic(knapsack, losses))
    monkeypatch.setattr(
        module, "_find_useful_levels", lambda *_: [np.arange(len(loss)) for loss in losses]
    )
    assert found == pytest.approx(total(losses, solve_dynamic(knapsack, losses)), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", [0.1, 0.37, 0.7, 0.95])
def test_all_solvers_agree_on_convex_losses(seed: int, target: float) -> None:
    rng = np.random.default_rng(seed)
    losses = [np.cumsum(np.cumsum(rng.uniform(size=n))) for n in (30, 10, 80, 41)]
    steps = round(target * sum(len(loss) - 1 for loss in losses))
    knapsack = knapsack_of([5 + 3 * np.arange(len(v)) for v in losses], 20 + 3 * steps, equal=True)
    exact = solve_dynamic(knapsack, losses)
    assert solve_greedy(knapsack, losses).tolist() == exact.tolist()
    priced = solve_lagrangian(knapsack, losses)
    assert priced.levels.tolist() == exact.tolist()
    assert priced.bound == pytest.approx(total(losses, exact))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_beats_the_bound_or_the_exact_solution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = [np.cumsum(rng.exponential(size=n) ** 3) for n in (20, 11, 35)]
    last = np.inf
    for steps in range(63, -1, -3):
        knapsack = knapsack_of([np.arange(len(loss)) for loss in losses], steps, equal=True)
        exact = total(losses, solve_dynamic(knapsack, losses))
        priced = solve_lagrangian(knapsack, losses)
        assert priced.bound <= exact + 1e-9
        for levels in (priced.levels, solve_greedy(knapsack, losses)):
            assert total(knapsack.table.saved, levels) == steps
            assert total(losses, levels) >= exact - 1e-9
        assert exact <= last  # less to remove never loses more
        last = exact


def test_the_bound_is_the_hull() -> None:
    # concave losses: between the ends the hull is straight
    losses = [np.array([0.0, 3.0, 4.0]), np.array([0.0, 6.0, 8.0])]
    priced = solve_lagrangian(knapsack_of([range(3)] * 2, 1, equal=True), losses)
    assert (priced.price, priced.bound) == (2.0, 2.0)
    assert [r.tolist() for r in priced.reduced] == [[0, 1, 0], [0, 4, 4]]
    assert solve_dynamic(knapsack_of([range(3)] * 2, 2, equal=True), losses).tolist() == [2, 0]
    assert solve_greedy(knapsack_of([range(3)] * 2, 2, equal=True), losses).tolist() == [2, 0]


def test_equal_units_have_the_same_rates_in_any_order() -> None:
    rng = np.random.default_rng(3)
    curves = [np.cumsum(rng.exponential(size=9)) for _ in range(2)]
    losses = [curves[0], curves[1], curves[0], curves[0]]
    found = solve_dynamic(knapsack_of([range(9)] * 4, 17, equal=True), losses)
    for order in ([1, 0, 2, 3], [3, 2, 1, 0]):
        again = solve_dynamic(
            knapsack_of([range(9)] * 4, 17, equal=True), [losses[i] for i in order]
        )
        for curve in (0, 1):
            same = [i for i, loss in enumerate(losses) if loss is curves[curve]]
            there = [order.index(i) for i in same]
            assert sorted(found[same]) == sorted(again[there])


def test_greedy_by_hand() -> None:
    # 1 for one weight; then 6 for four weights rather than 2 for one
    losses = [np.array([0.0, 1.0, 3.0]), np.array([0.0, 6.0, 12.0])]
    weights = [[0, 1, 2], [0, 4, 8]]
    assert solve_greedy(knapsack_of(weights, 5), losses).tolist() == [1, 1]
    # a step that does not fit is passed over
    assert solve_greedy(knapsack_of(weights, 3), losses).tolist() == [2, 0]


def test_steps_are_taken_back_down_to_the_least() -> None:
    knapsack = knapsack_of([[0, 4], [0, 4], [0, 3]], least=4, greatest=12)
    losses = [np.array([0.0, 2.0]), np.array([0.0, 3.0]), np.array([0.0, 2.0])]
    assert trim_steps(knapsack, losses, np.array([1, 1, 0])).tolist() == [1, 0, 0]
    assert trim_steps(knapsack, losses, np.array([1, 1, 1])).tolist() == [1, 0, 0]
    assert trim_steps(knapsack, losses, np.array([0, 1, 0])).tolist() == [0, 1, 0]


def test_more_options_than_a_byte_counts() -> None:
    ramp = np.zeros(700)
    ramp[-1] = 2.0
    losses = [ramp, np.arange(700.0)]
    assert solve_dynamic(knapsack_of([range(700)] * 2, 699, equal=True), losses).tolist() == [
        698,
        1,
    ]
