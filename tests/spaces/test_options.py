"""Spaces in which every unit chooses among patterns by what they save."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, ProfileError
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.choices import PatternOptions, option_prices
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.testing.problems import SeparableProblem, toy_layout, toy_space
from sparsity_search.testing.searcher import assert_legal
from sparsity_search.utils.random import create_generator

SHARE = {"": 0.0, "4:8": 0.25, "2:4": 0.5}
SAVINGS = {"2:4": 0.5, "4:8": 0.25}
#: No option of one is a multiple of those of the others.
SIZES = (80, 24, 56, 136)


def by_hand(layout: Layout, target: float) -> set[tuple[str, ...]]:
    """Return all assignments that save enough, and of which no unit can go one option down."""
    wanted, order = round(target * layout.n_weights), list(SHARE)

    def total(patterns: tuple[str, ...]) -> int:
        return sum(round(SHARE[p] * u.count) for p, u in zip(patterns, layout, strict=True))

    def down(patterns: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [
            (*patterns[:i], order[order.index(pattern) - 1], *patterns[i + 1 :])
            for i, pattern in enumerate(patterns)
            if pattern
        ]

    return {
        found
        for found in itertools.product(SHARE, repeat=len(layout))
        if total(found) >= wanted and all(total(less) < wanted for less in down(found))
    }


def everything(space: SearchSpace) -> list[Candidate]:
    pairs = zip(space.limits.lower.tolist(), space.limits.upper.tolist(), strict=True)
    levels = itertools.product(*[range(low, high + 1) for low, high in pairs])
    return [candidate for candidate in levels if candidate in space]


def patterns_of(profile: SparsityProfile) -> tuple[str, ...]:
    return tuple(pattern for _, pattern in profile.states)


@pytest.mark.parametrize("target", [0.05, 0.1, 0.2, 0.25, 0.3, 0.37, 0.45, 0.5])
@pytest.mark.parametrize("sizes", [SIZES, (80, 80, 80, 80), (8, 800, 80, 8)])
def test_all_assignments_of_four_units(sizes: tuple[int, ...], target: float) -> None:
    space = toy_space(*sizes, options=SAVINGS, target=target, reach=2)
    profiles = [space.profile(candidate) for candidate in everything(space)]
    assert {patterns_of(profile) for profile in profiles} == by_hand(space.layout, target)
    assert len({profile.digest for profile in profiles}) == len(profiles)
    for candidate, profile in zip(everything(space), profiles, strict=True):
        assert space.nearest(profile) == candidate
        sparse = [unit for unit, p in zip(space.layout, patterns_of(profile), strict=True) if p]
        assert profile.n_removed == sum(unit.count // 2 for unit in sparse)  # real zeros
    assert_legal(space, everything(space))
    assert patterns_of(space.base) in by_hand(space.layout, target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.0625, "D D D 4"),
        (0.25, "4 4 4 4"),
        (0.3, "4 4 4 2"),
        (0.4375, "4 2 2 2"),
        (0.5, "2 2 2 2"),
    ],
)
def test_uniform(target: float, expected: str) -> None:
    space = toy_space(80, 80, 80, 80, options=SAVINGS, target=target, reach=2)
    found = ["D" if not p else p[0] for p in patterns_of(space.base)]
    assert sorted(found) == sorted(expected.split())
    assert space.saved(space.base).sum() == pytest.approx(target * 320, abs=20)


@given(st.lists(st.sampled_from([8, 24, 40, 144]), min_size=1, max_size=5), st.floats(0.02, 0.49))
@settings(max_examples=40)
def test_uniform_is_legal(sizes: list[int], target: float) -> None:
    space = toy_space(*sizes, options=SAVINGS, target=target, reach=2)
    assert patterns_of(space.base) in by_hand(space.layout, target)


@given(
    st.lists(st.sampled_from([8, 24, 40, 144]), min_size=1, max_size=5),
    st.floats(0.02, 0.49),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_wanted_savings_become_near_options(sizes: list[int], target: float, seed: int) -> None:
    space = toy_space(*sizes, options=SAVINGS, target=target, reach=2)
    wanted = create_generator(seed, "wanted").uniform(0, 1, len(sizes))
    assert_legal(space, [space.nearest(Budget(target).project(space.layout, wanted))])
    assert_legal(space, [space.sample(create_generator(seed, "s"), 2.0)])


def test_an_allocation_is_read_as_savings() -> None:
    space = toy_space(80, 80, 80, 80, options=SAVINGS, target=0.25, reach=2)
    profile = space.project(from_counts(space.layout, [0, 40, 21, 19]))
    assert profile.patterns == ("", "2:4", "4:8", "4:8")
    assert profile.removed == (0, 40, 40, 40)
    # the same counts with patterns are what they are
    same = from_counts(space.layout, [0, 40, 40, 0], ["", "2:4", "2:4", ""])
    assert space.project(same) == same


def test_the_better_of_two_that_save_alike_is_found() -> None:
    """Where harm is steep in the saving, a search prefers many 4:8 to few 2:4."""
    space = toy_space(80, 80, 80, 80, options=SAVINGS, target=0.25, reach=2)
    candidate, _ = SeparableProblem(space, weights=[1, 1, 1, 1]).optimum()
    assert space.profile(candidate).patterns == ("4:8",) * 4
    candidate, _ = SeparableProblem(space, weights=[99, 1, 1, 99]).optimum()
    assert space.profile(candidate).patterns == ("", "2:4", "2:4", "")
    assert space.profile(candidate).n_removed == 80


def test_numbers() -> None:
    savings = {"2:4": 0.45, "4:8": 0.2, "3:4": 0.1}
    options = PatternOptions.of(option_prices(toy_layout(80, 24, zeros=3), savings))
    assert options.patterns == ("", "3:4", "4:8", "2:4")
    assert options.zeros.tolist() == [[3, 20, 40, 40], [3, 6, 12, 12]]
    assert options.saved.tolist() == [[0, 8, 16, 36], [0, 2, 5, 11]]


@pytest.mark.parametrize(
    "savings",
    [
        {"2:4": 0.3, "4:8": 0.3},
        {"2:4": 0.0},
        {"2:4": -0.1},
        {"2:4": 1.5},
        {"2:4": 0.3, "1:4": 0.301},  # rounds to the same in the smaller unit
    ],
)
def test_savings_differ(savings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"different fractions of a unit, in \(0, 1\]"):
        option_prices(toy_layout(80, 24), savings)


@pytest.mark.parametrize(("pattern", "message"), [("4:4", "N < M"), ("2:7", "groups of 7")])
def test_options_are_patterns_of_whole_groups(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        option_prices(toy_layout(80, 24), {pattern: 0.5})
    with pytest.raises(ProfileError, match="cannot be"):
        PatternOptions.of(option_prices(toy_layout(80, 24), {"*:4": 0.5}))


@pytest.mark.parametrize("target", [0.51, 0.9])
def test_more_than_the_options_save(target: float) -> None:
    with pytest.raises(InfeasibleBudgetError, match=f"saving {target} .* allow 0 to 0.5$"):
        toy_space(80, 24, options=SAVINGS, target=target)
    with pytest.raises(InfeasibleBudgetError, match=r"allow 0 to 0; 32 of .* \(66\.7%\) are zero"):
        toy_space(24, 24, options=SAVINGS, target=target, zeros=16)


def test_limits_of_zeros() -> None:
    lower, upper = np.array([0.2, 0, 0, 0]), np.array([1, 0.4, 1, 1])
    space = toy_space(*SIZES, options=SAVINGS, target=0.3, reach=2, lower=lower, upper=upper)
    assert space.patterns() == [("4:8", "2:4"), (), ("4:8", "2:4"), ("4:8", "2:4")]
    assert space.tables() == [(40,), (0,), (0, 28), (0, 68)]
    found = {patterns_of(space.profile(candidate)) for candidate in everything(space)}
    assert {p for p in found if p[0] and not p[1]} == found
    assert len(found) > 1
    with pytest.raises(
        InfeasibleBudgetError, match=r"layers\.0\.q: none of its options has 8 to 16"
    ):
        toy_space(80, 24, options=SAVINGS, target=0.3, lower=0.1, upper=0.2)


def test_a_unit_with_as_many_zeros_stays_as_it_is() -> None:
    space = toy_space(24, 80, 80, options=SAVINGS, target=0.2, zeros=12, reach=2)
    assert space.patterns() == [(), ("4:8", "2:4"), ("4:8", "2:4")]
    assert space.base.removed[0] == 12
    assert int(space.saved(from_counts(space.layout, [12, 12, 12])).sum()) == 0


def test_reach_bounds_what_is_tried() -> None:
    space = toy_space(80, 80, 80, 80, options=SAVINGS, target=0.0625, reach=1)
    assert set(space.patterns()) == {("4:8",), ("4:8", "2:4")}


def test_tied_units_have_one_option_where_they_can() -> None:
    upper = np.array([1, 1, 1, 0.3])
    space = toy_space(
        80, 24, 56, 136, options=SAVINGS, target=0.13, reach=2, genes=((0, 1), (2, 3)), upper=upper
    )  # fmt: skip
    found = {patterns_of(space.profile(candidate)) for candidate in everything(space)}
    assert all(first == second and not last for first, second, _, last in found)
    assert len(found) > 1


def test_is_part_of_the_digest() -> None:
    spaces = [
        toy_space(*SIZES, pattern="2:4", target=0.3),
        *(toy_space(*SIZES, options=o, target=0.3) for o in (SAVINGS, {"2:4": 0.5, "4:8": 0.3})),
        toy_space(*SIZES, options={"2:4": 0.5, "1:2": 0.25}, target=0.3),
    ]
    assert len({space.digest for space in spaces}) == 4


def test_profiles_of_other_patterns() -> None:
    space = toy_space(80, 80, options=SAVINGS, target=0.25)
    with pytest.raises(ConfigError, match="the space has the options"):
        space.saved(from_counts(space.layout, [20, 20], ["3:4", "3:4"]))


@pytest.mark.parametrize("target", [0.1, 0.25, 0.4])
def test_the_packaged_space(target: float) -> None:
    layout = toy_layout(*(144, 48, 144, 384) * 4)
    space = load_space("dense_or_sparse").build(layout, Budget(target), {})
    assert space.patterns() == [("4:8", "2:4")] * 16
    some = [space.sample(create_generator(i, "s"), 2.0) for i in range(20)]
    assert_legal(space, some)
    used = {p for candidate in some for p in patterns_of(space.profile(candidate))}
    assert used == {"", "4:8", "2:4"}
