from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget, water_fill
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts
from sparsity_search.testing.problems import toy_layout

counts = st.lists(st.integers(1, 3000), min_size=1, max_size=8)
targets = st.floats(0.01, 0.99)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layout, np.ndarray, Bounds]:
    """A layout with zeros already there, wanted sparsities far off, and feasible bounds."""
    sizes = draw(counts)
    units = [
        Unit(name=str(i), block=0, role="q", count=n, zeros=draw(st.integers(0, n // 4)))
        for i, n in enumerate(sizes)
    ]
    layout = Layout(units)
    wanted = [draw(st.floats(-3, 4)) for _ in sizes]
    lower = np.array([draw(st.floats(0, 0.5)) for _ in sizes])
    upper = np.array([draw(st.floats(0.6, 1)) for _ in sizes])
    try:
        return layout, np.array(wanted), Bounds.of(layout, lower, upper)
    except InfeasibleBudgetError:  # a unit so small that no count lies between its bounds
        assume(False)
        raise


def sides(layout: Layout, bounds: Bounds) -> tuple[int, int]:
    return int(bounds.lower @ layout.costs), int(bounds.upper @ layout.costs)


@given(problems(), st.floats(0, 1))
def test_projection_is_exact_and_within_bounds(
    problem: tuple[Layout, np.ndarray, Bounds], where: float
) -> None:
    layout, wanted, bounds = problem
    low, high = sides(layout, bounds)
    budget = Budget(np.clip(low + where * (high - low), 0.1, layout.n_weights - 0.1)
                    / layout.n_weights)  # fmt: skip
    assume(low <= budget.n_removed(layout) <= high)
    profile = budget.project(layout, wanted, bounds)
    removed = np.array(profile.removed)
    assert profile.n_removed == budget.n_removed(layout)
    assert (bounds.lower <= removed).all()
    assert (removed <= bounds.upper).all()
    assert (removed >= layout.zeros).all()


@given(problems(), targets, targets)
def test_projection_is_monotone_in_the_target(
    problem: tuple[Layout, np.ndarray, Bounds], one: float, other: float
) -> None:
    layout, wanted, bounds = problem
    low, high = sides(layout, bounds)
    small, large = (Budget(target) for target in sorted([one, other]))
    assume(low <= small.n_removed(layout))
    assume(large.n_removed(layout) <= high)
    less = np.array(small.project(layout, wanted, bounds).removed)
    more = np.array(large.project(layout, wanted, bounds).removed)
    assert (more >= less - 1).all()


@given(problems(), st.integers(0, 2**32))
def test_projection_leaves_feasible_profiles_alone(
    problem: tuple[Layout, np.ndarray, Bounds], seed: int
) -> None:
    layout, _, bounds = problem
    rng = np.random.default_rng(seed)
    profile = from_counts(layout, rng.integers(bounds.lower, bounds.upper + 1))
    assume(0 < profile.n_removed < layout.n_weights)
    assert Budget(profile.sparsity).project(layout, profile.sparsities, bounds) == profile


def brute_force(values: np.ndarray, bounds: Bounds, total: int) -> float:
    """Return the least squared distance to ``values`` of integers in the bounds."""
    ranges = [range(low, high + 1) for low, high in zip(bounds.lower, bounds.upper, strict=True)]
    legal = (np.array(x) for x in itertools.product(*ranges) if sum(x) == total)
    return min(float(((x - values) ** 2).sum()) for x in legal)


@given(st.lists(st.tuples(st.floats(-4, 9), st.integers(0, 3), st.integers(3, 6)), min_size=2,
                max_size=4), st.floats(0, 1))  # fmt: skip
def test_projection_is_the_nearest_of_all(
    units: list[tuple[float, int, int]], where: float
) -> None:
    values, lower, upper = (np.array(column) for column in zip(*units, strict=True))
    bounds = Bounds(lower=lower, upper=upper)
    total = round(lower.sum() + where * (upper.sum() - lower.sum()))
    ones = np.ones(len(units), dtype=np.int64)
    found = water_fill(values.astype(float), ones, bounds, ones, total)
    assert found.sum() == total
    assert ((found - values) ** 2).sum() == pytest.approx(brute_force(values, bounds, total))


def test_unequal_sizes_share_one_shift_of_sparsity() -> None:
    layout = toy_layout(1000, 3000, 4000)
    profile = Budget(0.5).project(layout, np.array([0.3, 0.4, 0.5]))
    # plain sparsities remove 3500 of 8000: the missing 500 are 0.0625 of every unit
    np.testing.assert_allclose(profile.sparsities, [0.3625, 0.4625, 0.5625], atol=0.001)


def test_a_unit_at_its_bound_leaves_the_rest_to_the_others() -> None:
    layout = toy_layout(1000, 1000, 1000)
    bounds = Bounds.of(layout, upper=np.array([0.3, 1.0, 1.0]))
    assert Budget(0.5).project(layout, np.full(3, 0.9), bounds).removed == (300, 600, 600)


def test_largest_remainder() -> None:
    layout = toy_layout(10, 10, 10)
    profile = Budget(0.5).project(layout, np.array([0.47, 0.54, 0.49]))
    assert profile.removed == (5, 5, 5)
    assert Budget(8 / 30).project(layout, np.array([0.21, 0.32, 0.27])).removed == (2, 3, 3)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=6),
    targets,
    st.integers(0, 2**32),
)
def test_structures_meet_the_budget_to_within_one(
    units: list[tuple[int, int]], target: float, seed: int
) -> None:
    layout = Layout(
        [
            Unit(name=str(i), block=0, role="head", count=count, cost=cost)
            for i, (count, cost) in enumerate(units)
        ]
    )
    wanted = np.random.default_rng(seed).uniform(-1, 2, len(layout))
    profile = Budget(target).project(layout, wanted)
    missing = Budget(target).n_removed(layout) - profile.n_removed
    assert 0 <= missing < layout.costs.max()


def test_uniform_is_equal_sparsity() -> None:
    layout = toy_layout(100, 300, 200)
    assert Budget(0.5).uniform(layout).removed == (50, 150, 100)


def test_uniform_keeps_existing_zeros() -> None:
    units = [
        Unit(name="a", block=0, role="q", count=100, zeros=80),
        Unit(name="b", block=0, role="k", count=100),
    ]
    assert Budget(0.5).uniform(Layout(units)).removed == (80, 20)


def test_bounds_round_inwards() -> None:
    layout = toy_layout(10, 10, 7)
    bounds = Bounds.of(layout, np.array([0.3, 0.31, 0.5]), np.array([0.3, 0.69, 0.5001]) + 0.2)
    assert bounds.lower.tolist() == [3, 4, 4]
    assert bounds.upper.tolist() == [5, 8, 4]


def test_bounds_that_cross_name_the_unit() -> None:
    layout = toy_layout(10, 10, zeros=6)
    with pytest.raises(InfeasibleBudgetError, match=r"layers\.0\.q: at least 6 of 10.*6 are zero"):
        Bounds.of(layout, upper=0.5)


@pytest.mark.parametrize("target", [0.2, 0.8])
def test_infeasible_names_the_feasible_range(target: float) -> None:
    layout = toy_layout(100, 100)
    with pytest.raises(InfeasibleBudgetError, match=r"0\.3 to 0\.6 \(60 to 120 of 200 weights\)"):
        Budget(target).project(layout, np.zeros(2), Bounds.of(layout, 0.3, 0.6))


def test_zeros_of_the_model_are_named() -> None:
    layout = toy_layout(100, 100, zeros=70)
    with pytest.raises(
        InfeasibleBudgetError, match=r"140 of these weights \(70\.0%\) are zero .*:"
    ):
        Budget(0.5).uniform(layout)
    with pytest.raises(InfeasibleBudgetError, match=r"180 of 200 weights\)$"):
        Budget(0.95).uniform(layout, Bounds.of(layout, upper=0.9))


@pytest.mark.parametrize("target", [0.3, 0.6])
def test_the_ends_of_the_feasible_range_are_feasible(target: float) -> None:
    layout = toy_layout(100, 50)
    bounds = Bounds.of(layout, 0.3, 0.6)
    wanted = np.array([0.1, 0.9])
    np.testing.assert_allclose(
        Budget(target).project(layout, wanted, bounds).sparsities, [target, target]
    )


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 50, float("nan")])
def test_target_is_a_fraction(target: float) -> None:
    with pytest.raises(ConfigError, match="strictly between 0 and 1"):
        Budget(target)


@pytest.mark.parametrize("wanted", [[0.5], [0.5, np.nan], [0.5, np.inf], [[0.5, 0.5]]])
def test_wanted_sparsities_are_checked(wanted: list[float]) -> None:
    with pytest.raises(ConfigError, match="2 finite sparsities"):
        Budget(0.5).project(toy_layout(10, 10), np.array(wanted))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_wanted_sparsities_of_any_size(scale: float) -> None:
    layout = toy_layout(*[10**8 + i for i in range(50)])
    wanted = scale * np.random.default_rng(0).normal(size=50)
    assert Budget(0.7).project(layout, wanted).n_removed == Budget(0.7).n_removed(layout)


@pytest.mark.parametrize("n_removed", [3, 10, 15, 24])
def test_equal_remainders_are_spread_over_the_units(n_removed: int) -> None:
    layout = Layout([Unit(name=f"{i}", block=i, role="x", count=1, cost=7) for i in range(30)])
    removed = np.array(Budget(n_removed / 30).uniform(layout).removed)
    assert removed.sum() == n_removed
    counts = np.array([removed[i : i + 10].sum() for i in range(0, 21)])
    assert abs(counts - n_removed / 3).max() <= 1.5  # each run of ten units has its share
