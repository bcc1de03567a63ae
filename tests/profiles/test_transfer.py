from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.profiles.transfer import (
    find_unmatched_roles,
    have_same_units,
    interpolate_sparsities,
    retarget,
    transfer,
)
from sparsity_search.spaces.files import bounds_of

targets = st.floats(0.02, 0.98)


def family(sizes: dict[str, int], blocks: int, cost: int = 1) -> Layout:
    return Layout(
        [
            Unit(name=f"m.{block}.{role}", block=block, role=role, count=count, cost=cost)
            for block in range(blocks)
            for role, count in sizes.items()
        ]
    )


@st.composite
def profiles(draw: st.DrawFn) -> SparsityProfile:
    sizes = {role: draw(st.integers(1, 5000)) for role in ("q", "k", "up")}
    layout = family(sizes, draw(st.integers(1, 9)), draw(st.sampled_from([1, 1, 3])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    profile = from_counts(layout, rng.integers(0, layout.counts + 1))
    assume(0 < profile.n_removed < layout.n_weights)
    return profile


@settings(max_examples=30)
@given(profile=profiles())
def test_to_itself_is_the_identity(profile: SparsityProfile) -> None:
    budget = Budget(profile.sparsity)
    assert transfer(profile, profile.layout, budget) == profile
    assert retarget(profile, budget) == profile


@settings(max_examples=30)
@given(profile=profiles(), target=targets)
def test_another_target_is_met_and_the_shape_kept(profile: SparsityProfile, target: float) -> None:
    budget, layout = Budget(target), profile.layout
    moved = retarget(profile, budget)
    assert 0 <= budget.n_removed(layout) - moved.n_removed < layout.costs.max()
    # all units that are not clipped move by one constant, to within the rounding of an item
    shift = moved.sparsities - profile.sparsities
    free = (moved.sparsities > 0) & (moved.sparsities < 1)
    slack = 1.5 / layout.counts.min()
    if free.any():
        assert np.ptp(shift[free]) <= 2 * slack
    order = np.argsort(profile.sparsities, kind="stable")
    assert (np.diff(moved.sparsities[order]) >= -2 * slack).all()


def test_a_shift_by_hand() -> None:
    layout = Layout([Unit(name=f"{n}", block=0, role="q", count=n) for n in (100, 200, 300)])
    profile = from_counts(layout, [10, 100, 240])  # 0.1, 0.5, 0.8: 350 of 600
    # 120 more: 0.2 each would make 0.3, 0.7, 1.0, exactly
    assert retarget(profile, Budget(470 / 600)).removed == (30, 140, 300)
    # 60 more again: the third is full, the others share 60 of 300
    assert retarget(profile, Budget(530 / 600)).removed == (50, 180, 300)


def test_bounds_hold() -> None:
    layout = family({"q": 100, "up": 300}, 4)
    profile = from_counts(layout, [10, 200] * 4)
    bounds = bounds_of(layout, {"up": (0.0, 0.7)})
    moved = retarget(profile, Budget(0.65), bounds)
    assert moved.removed == (50, 210) * 4
    assert transfer(profile, layout, Budget(0.65), bounds) == moved
    with pytest.raises(InfeasibleBudgetError):
        retarget(profile, Budget(0.9), bounds)


def test_zeros_that_are_there_go_first() -> None:
    layout = family({"q": 10, "up": 10}, 2)
    profile = from_counts(layout, [1, 1, 5, 7])
    model = Layout([Unit(name=u.name, block=u.block, role=u.role, count=10, zeros=3)
                    for u in layout])  # fmt: skip
    assert have_same_units(layout, model)
    assert transfer(profile, model, Budget(profile.sparsity)).removed == (3, 3, 3, 5)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 16, 31])
def test_a_line_over_depth_stays_that_line(blocks: int) -> None:
    source = family({"q": 1000, "up": 2000}, 9)
    removed = [n for b in range(9) for n in (200 + 50 * b, 1800 - 100 * b)]
    found = interpolate_sparsities(
        from_counts(source, removed), family({"up": 77, "q": 31}, blocks)
    )
    depth = np.linspace(0, 1, blocks) if blocks > 1 else np.array([0.5])
    np.testing.assert_allclose(found[::2], 0.9 - 0.4 * depth)
    np.testing.assert_allclose(found[1::2], 0.2 + 0.4 * depth)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2000), min_size=2, max_size=12), st.integers(2, 40), targets)
def test_monotone_stays_monotone(removed: list[int], blocks: int, target: float) -> None:
    assume(0 < sum(removed) < 2000 * len(removed))
    profile = from_counts(family({"q": 2000}, len(removed)), sorted(removed))
    moved = transfer(profile, family({"q": 3000}, blocks), Budget(target))
    assert (np.diff(moved.removed) >= -1).all()  # to within the rounding of a weight
    assert moved.n_removed == Budget(target).n_removed(moved.layout)


def test_the_ends_and_what_lies_between_by_hand() -> None:
    profile = from_counts(family({"q": 10}, 3), [1, 5, 9])
    found = interpolate_sparsities(profile, family({"q": 10}, 5))
    np.testing.assert_allclose(found, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(interpolate_sparsities(profile, family({"q": 10}, 2)), [0.1, 0.9])
    one = from_counts(family({"q": 10}, 1), [3])
    np.testing.assert_allclose(interpolate_sparsities(one, family({"q": 10}, 4)), 0.3)


def test_a_role_that_is_new_follows_the_blocks() -> None:
    # blocks: (2 + 24) / 40 = 0.65 and (6 + 6) / 40 = 0.3
    profile = from_counts(family({"q": 10, "up": 30}, 2), [2, 24, 6, 6])
    layout = family({"q": 10, "dense": 50}, 3)
    assert find_unmatched_roles(profile, layout) == ["dense"]
    np.testing.assert_allclose(
        interpolate_sparsities(profile, layout), [0.2, 0.65, 0.4, 0.475, 0.6, 0.3]
    )


def test_units_of_one_role_in_a_block_count_as_one() -> None:
    sizes = [10, 30, 20, 20]
    units = [
        Unit(name=f"m.{i // 2}.e{i % 2}", block=i // 2, role="w1", count=n)
        for i, n in enumerate(sizes)
    ]
    profile = from_counts(Layout(units), [10, 10, 0, 10])
    found = interpolate_sparsities(profile, family({"w1": 7}, 3))
    np.testing.assert_allclose(found, [20 / 40, 3 / 8, 10 / 40])
    np.testing.assert_array_equal(
        interpolate_sparsities(profile, Layout(units)), profile.sparsities
    )


def test_structures_are_weighted_by_what_they_hold() -> None:
    units = [
        Unit(name="m.0.a", block=0, role="x", count=2, cost=30),
        Unit(name="m.0.b", block=0, role="x", count=10, cost=4),
    ]
    profile = from_counts(Layout(units), [2, 0])
    np.testing.assert_allclose(interpolate_sparsities(profile, family({"x": 3}, 2)), 0.6)


def test_a_role_of_some_blocks_only() -> None:
    blocks = family({"up": 10}, 5)
    attention = [Unit(name=f"m.{b}.q", block=b, role="q", count=10) for b in (1, 3)]
    layout = Layout([*blocks, *attention])
    profile = from_counts(layout, [5] * 5 + [2, 8])
    found = interpolate_sparsities(profile, family({"q": 10}, 9))
    # its depths are 1/4 and 3/4, and its curve is level outside of them
    np.testing.assert_allclose(found, [0.2, 0.2, 0.2, 0.35, 0.5, 0.65, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("change", [{"count": 9}, {"name": "x"}, {"role": "k"}, {"cost": 2}])
def test_other_units_are_not_the_same(change: dict[str, object]) -> None:
    facts: dict[str, object] = {"name": "m.0.q", "block": 0, "role": "q", "count": 10}
    one, other = (Layout([Unit(**f)]) for f in (facts, {**facts, **change}))  # type: ignore[arg-type]
    assert not have_same_units(one, other)
    assert have_same_units(one, Layout([Unit(**facts, zeros=3)]))  # type: ignore[arg-type]


def test_default_bounds_are_what_is_there() -> None:
    layout = family({"q": 10}, 2)
    profile = from_counts(layout, [2, 4])
    assert retarget(profile, Budget(0.5), Bounds.of(layout)) == retarget(profile, Budget(0.5))
