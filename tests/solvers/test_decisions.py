from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, UnknownNameError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.solvers import decisions as module
from sparsity_search.solvers.decisions import (
    SolverRules,
    match_role,
    parse_limits,
    pose_counts,
    pose_steps,
)
from tests.helpers.solver_problems import layout_of, scores_of


def test_steps_of_the_small_model() -> None:
    # SmolLM2: 110,592, 331,776 and 884,736 weights; a divisor of all, at most 1% of the least
    layout = layout_of([331776, 110592, 331776, 884736])
    knapsack = pose_steps(layout, Budget(0.6), Bounds.of(layout), SolverRules())
    assert set(knapsack.steps) == {1024}
    assert [int(w[-1]) for w in knapsack.table.saved] == layout.counts.tolist()
    assert 0 <= Budget(0.6).n_removed(layout) - knapsack.least < 1024


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 500), min_size=1, max_size=6),
    target=st.floats(0.02, 0.98),
    low=st.floats(0, 0.4),
    high=st.floats(0.6, 1),
    step=st.sampled_from([0.01, 0.1, 1.0]),
    tied=st.sampled_from([("name",), ("block",), ("role",)]),
)
def test_stepped(
    counts: list[int],
    target: float,
    low: float,
    high: float,
    step: float,
    tied: tuple[str, ...],
) -> None:
    layout, rules = layout_of(counts), SolverRules(step=step, tied=tied)
    try:
        bounds = Bounds.of(layout, low, high)
        Budget(target).check(layout, bounds)
    except InfeasibleBudgetError:
        return
    knapsack = pose_steps(layout, Budget(target), bounds, rules)
    assert sorted(i for group in knapsack.table.groups for i in group) == list(range(len(layout)))
    table = knapsack.table
    for group, found, weights in zip(table.groups, table.rows, table.saved, strict=True):
        index = list(group)
        np.testing.assert_allclose(found.sum(axis=1), weights)
        assert (found >= bounds.lower[index] - 1e-9).all()
        assert (found <= bounds.upper[index] + 1e-9).all()
        for row in found:  # one sparsity, but for units at their bounds
            free = (row > bounds.lower[index] + 1e-6) & (row < bounds.upper[index] - 1e-6)
            shares = row[free] / layout.counts[index][free]
            assert shares.size == 0 or np.ptp(shares) < 1e-9
    least = sum(int(w[0]) for w in knapsack.table.saved)
    most = sum(int(w[-1]) for w in knapsack.table.saved)
    assert least <= knapsack.least == knapsack.greatest <= most
    missing = Budget(target).n_removed(layout) - knapsack.least
    assert 0 <= missing < max(knapsack.steps) or knapsack.least == most
    if step < 1:
        assert max(knapsack.steps) <= max(1, step * min(counts_of(knapsack)))


def counts_of(knapsack: module.Knapsack) -> list[int]:
    table = knapsack.table
    return [int(table.layout.counts[list(group)].sum()) for group in table.groups]


def test_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of([10, 1000, 1000])  # 1% of the least would be a tenth of a weight
    monkeypatch.setattr(module, "MAX_STEPS", 100)
    knapsack = pose_steps(layout, Budget(0.5), Bounds.of(layout), SolverRules())
    assert sum(len(w) - 1 for w in knapsack.table.saved) <= 100
    assert math.gcd(*knapsack.steps) >= 20


def test_losses_are_those_of_the_curves() -> None:
    layout = layout_of([40, 80])
    scores = scores_of(layout, lambda i, s: (i + 1) * s**2)
    knapsack = pose_steps(
        layout, Budget(0.5), Bounds.of(layout), SolverRules(tied=("block",), step=0.1)
    )
    (losses,) = knapsack.losses(scores)
    shares = knapsack.table.saved[0] / 120
    np.testing.assert_allclose(losses, 3 * shares**2, atol=1e-12)


def test_structures_by_hand() -> None:
    layout = layout_of([4, 2], costs=[10, 30])
    knapsack = pose_counts(layout, Budget(0.5), Bounds.of(layout, 0, 0.99), SolverRules())
    assert [w.tolist() for w in knapsack.table.saved] == [[0, 10, 20, 30], [0, 30]]
    assert (knapsack.least, knapsack.greatest) == (41, 50)
    assert not knapsack.equal
    assert knapsack.fixed
    tied = pose_counts(layout, Budget(0.5), Bounds.of(layout), SolverRules(tied=("block",)))
    assert tied.table.saved[0].tolist() == [0, 10, 50, 60, 100]
    assert tied.table.rows[0].tolist() == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2]]


def test_patterns_by_hand() -> None:
    layout = layout_of([8, 16], zeros=[0, 3])
    knapsack = pose_counts(layout, Budget(0.4), Bounds.of(layout), SolverRules(pattern="2:4"))
    assert [w.tolist() for w in knapsack.table.saved] == [[0, 4], [3, 8]]
    assert (knapsack.least, knapsack.greatest) == (10, 14)
    with pytest.raises(InfeasibleBudgetError, match=r"0\.125 to 0\.5 \(3 to 12 of 24"):
        pose_counts(layout, Budget(0.6), Bounds.of(layout), SolverRules(pattern="2:4"))
    with pytest.raises(InfeasibleBudgetError, match=r"3 of these weights \(12\.5%\) are zero"):
        pose_counts(layout, Budget(0.1), Bounds.of(layout), SolverRules(pattern="2:4"))


def test_grids_of_weights_are_coarse_and_hold_the_bounds() -> None:
    layout = layout_of([1000])
    knapsack = pose_counts(
        layout, Budget(0.5), Bounds.of(layout, 0.103, 0.9), SolverRules(limits=())
    )
    weights = knapsack.table.saved[0]
    assert (weights[0], weights[-1]) == (103, 900)
    assert np.diff(weights).max() <= 41
    assert not knapsack.fixed


def test_roles_match_as_a_whole() -> None:
    layout = layout_of([1, 1, 1], roles=("o", "down", "k"))  # type: ignore[arg-type]
    assert match_role(layout, "o|k").tolist() == [True, False, True]
    with pytest.raises(UnknownNameError, match="no role matches 'dow'"):
        match_role(layout, "dow")


def test_limits_are_values() -> None:
    found = parse_limits({"q|k": [0, 0.5]})
    assert found == (("q|k", (0.0, 0.5)),)
    assert parse_limits(found) == found
    assert hash(found)
    for bad in (["q"], {"q": 1}, {"q": [1]}, {"q": ["a", "b"]}):
        with pytest.raises(ConfigError, match="limits must map roles"):
            parse_limits(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"tied": ("rol",)}, "tied: no unit has 'rol'.*'role'"),
        ({"tied": ()}, "tied must name"),
        ({"step": 0.0}, "step"),
        ({"step": 1.5}, "step"),
        ({"limits": (("q", (0.5, 0.2)),)}, "limits of 'q'"),
        ({"limits": (("q", (0.5, 1.2)),)}, "limits of 'q'"),
        ({"limits": (("(", (0.5, 0.6)),)}, "regular expression"),
    ],
)
def test_rules_that_are_refused(settings_: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SolverRules(**settings_)  # type: ignore[arg-type]
