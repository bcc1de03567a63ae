"""Search spaces whose genes have unequal steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts
from sparsity_search.spaces.choices import list_pattern_counts, tie_counts
from sparsity_search.spaces.even_levels import EvenLevels
from sparsity_search.spaces.level_budget import LevelBudget
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.spaces.pattern_levels import CountLevels
from sparsity_search.spaces.step_levels import StepLevels
from sparsity_search.spaces.tables import build_table
from sparsity_search.testing.problems import (
    SeparableProblem,
    build_uneven_spaces,
    toy_layout,
    toy_space,
)
from sparsity_search.testing.searcher import assert_legal
from sparsity_search.utils.random import create_generator

SPACES = build_uneven_spaces()


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


@st.composite
def tiny_spaces(draw: st.DrawFn) -> SearchSpace:
    """Up to four genes, up to four counts each, costs that have little in common."""
    n = draw(st.integers(1, 4))
    layout = toy_layout(*[24] * n, cost=[draw(st.sampled_from([1, 3, 7])) for _ in range(n)])
    counts = st.sets(st.integers(0, 24), min_size=1, max_size=4)
    choices = tuple(tuple(sorted(draw(counts))) for _ in range(n))
    genes = tuple((i,) for i in range(n))
    budget, reach = Budget(draw(st.floats(0.1, 0.9))), draw(st.integers(1, 3))
    try:
        return CountLevels(
            layout=layout, budget=budget, bounds=Bounds.of(layout), genes=genes, reach=reach,
            choices=choices,
        )  # fmt: skip
    except InfeasibleBudgetError:
        assume(False)
        raise


def vectors(space: SearchSpace) -> Iterator[Candidate]:
    """Yield all levels within their limits, legal or not."""
    pairs = zip(space.limits.lower.tolist(), space.limits.upper.tolist(), strict=True)
    return itertools.product(*[range(low, high + 1) for low, high in pairs])


def everything(space: SearchSpace) -> set[Candidate]:
    return {levels for levels in vectors(space) if levels in space}


def weights(space: SearchSpace, levels: Candidate) -> int:
    """Return what levels remove, counted unit by unit."""
    return sum(
        int(count) * space.layout[unit].cost
        for gene, level in enumerate(levels)
        for unit, count in zip(space.genes[gene], space.gene_counts(gene, level), strict=True)
    )


class Script:
    """Draws by a list of indices, and notes how many options each draw had."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        self.indices = list(indices)
        self.options: list[int] = []

    def choice(self, options: Any, p: Any = None) -> int:
        possible = [o for i, o in enumerate(options) if p is None or p[i] > 0]
        self.options.append(len(possible))
        return int(possible[self.indices.pop(0) if self.indices else 0])


def all_switches(space: SearchSpace, candidate: Candidate, stride: int) -> set[Candidate]:
    """Return what a switch can give, over all possible draws."""
    found, scripts = set(), [()]
    while scripts:
        script = scripts.pop()
        rng = Script(script)
        found.add(space.switch(candidate, rng, stride, range(space.n_genes)))  # type: ignore
        for i in range(len(script), len(rng.options)):
            zeros = (0,) * (i - len(script))
            scripts += [(*script, *zeros, other) for other in range(1, rng.options[i])]
    return found - {None}


@given(tiny_spaces())
@settings(max_examples=40, deadline=None)
def test_what_is_legal(space: SearchSpace) -> None:
    target = space.budget.n_removed(space.layout)
    inside = set(vectors(space))
    legal = set()
    for levels in inside:
        less = [(*levels[:g], levels[g] - 1, *levels[g + 1 :]) for g in range(len(levels))]
        fewer = [weights(space, other) for other in less if other in inside]
        if target <= weights(space, levels) and all(total < target for total in fewer):
            legal.add(levels)
    assert everything(space) == legal
    assert space.origin in legal
    assert_legal(space, sorted(legal))


@given(tiny_spaces())
@settings(max_examples=40, deadline=None)
def test_switches_reach_everything_and_nothing_else(space: SearchSpace) -> None:
    seen, todo = {space.origin}, [space.origin]
    while todo:
        candidate = todo.pop()
        moved = all_switches(space, candidate, 1)
        assert candidate not in moved
        todo += moved - seen
        seen |= moved
    assert seen == everything(space)


@given(tiny_spaces(), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_projections_are_legal_and_keep_what_is_legal(space: SearchSpace, seed: int) -> None:
    for candidate in everything(space):
        assert space.balance(np.array(candidate)) == candidate
        profile = space.profile(candidate)
        assert space.nearest(profile) == candidate
        assert space.project(profile) == profile
    rng = np.random.default_rng(seed)
    wild = from_counts(space.layout, rng.integers(0, 25, len(space.layout)))
    real = space.balance(rng.uniform(-9, 9, space.n_genes))
    assert_legal(space, [space.nearest(wild), space.sample(rng, 2.0), real])


@given(st.integers(2, 5), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_equal_steps_are_a_special_case(n: int, step: int, seed: int) -> None:
    even = toy_space(*[100] * n, step=step, reach=2, target=0.4)
    base = even.base.removed
    choices = tuple(tuple(range(c - 2 * step, c + 2 * step + 1, step)) for c in base)
    counted = CountLevels(
        layout=even.layout, budget=even.budget, bounds=even.bounds, genes=even.genes, reach=2,
        choices=choices,
    )  # fmt: skip
    assert isinstance(even, EvenLevels)
    assert counted.base == even.base
    assert everything(counted) == everything(even)
    wanted = np.random.default_rng(seed).normal(0, 2, n)
    assert counted.balance(wanted) == even.balance(wanted)


def test_random_switches_keep_the_budget(space: SearchSpace) -> None:
    rng, candidate, seen = create_generator(0, "walk"), space.origin, set()
    for i in range(400):
        moved = space.switch(candidate, rng, 1 + i % 2, range(space.n_genes))
        if moved is not None:
            assert moved != candidate
            candidate = moved
            seen.add(moved)
    assert len(seen) > 100
    assert_legal(space, list(seen)[:60])
    # every gene goes to each of its levels, or nearly
    found = np.array(list(seen))
    assert (found.max(axis=0) > found.min(axis=0)).all()


def test_switches_change_few_genes(space: SearchSpace) -> None:
    rng = create_generator(0, "few")
    moves = [space.switch(space.origin, rng, 1, range(space.n_genes)) for _ in range(100)]
    changed = [np.count_nonzero(move) for move in moves if move is not None]
    assert len(changed) > 90
    assert min(changed) == 2
    assert np.mean(changed) < 5


@pytest.mark.parametrize("name", ["2:4", "*:8", "width", "sublayers"])
def test_switches_within_a_role(name: str) -> None:
    space = SPACES[name]
    for role in set(space.roles):
        pool = [gene for gene, other in enumerate(space.roles) if other == role]
        moves = [space.switch(space.origin, create_generator(i, role), 1, pool) for i in range(30)]
        found = np.array([move for move in moves if move is not None])
        if (space.limits.upper[pool] > 0).any() and (space.limits.lower[pool] < 0).any():
            assert len(found) > 10
            assert set(np.flatnonzero(found.any(axis=0))) <= set(pool)


def test_switches_stay_among_genes_of_unequal_steps() -> None:
    space, pool = SPACES["*:8"], [0, 1, 3]
    moves = [space.switch(space.origin, create_generator(i, "pool"), 1, pool) for i in range(60)]
    found = np.array([move for move in moves if move is not None])
    assert len(found) > 10
    assert set(np.flatnonzero(found.any(axis=0))) == set(pool)


def test_strides() -> None:
    space = SPACES["*:8"]
    for stride in (2, 3):
        rngs = [create_generator(i, "s") for i in range(40)]
        moves = [space.switch(space.origin, rng, stride, range(16)) for rng in rngs]
        found = np.array([move for move in moves if move is not None])
        assert len(found) > 20
        assert (found.max(axis=1) >= stride).mean() > 0.5


@pytest.mark.parametrize("genes", [[], [0], [3]])
def test_switch_where_nothing_can_move(space: SearchSpace, genes: list[int]) -> None:
    assert {space.switch(space.origin, create_generator(i, "x"), 1, genes) for i in range(5)} == {
        None
    }


def test_samples_are_legal_and_spread(space: SearchSpace) -> None:
    some = [space.sample(create_generator(i, "s")) for i in range(60)]
    assert_legal(space, some)
    assert len(set(some)) > 50
    assert (np.std(some, axis=0) > 0).all()
    assert np.std([space.sample(create_generator(i, "s"), 0.3) for i in range(60)]) < np.std(some)
    assert [space.sample(create_generator(i, "s")) for i in range(60)] == some


def test_tables_hold_what_profiles_use(space: SearchSpace) -> None:
    for i in range(30):
        profile = space.profile(space.sample(create_generator(i, "s"), 2.0))
        for table, count in zip(space.tables(), profile.removed, strict=True):
            assert list(table) == sorted(set(table))
            assert count in table


def test_base_is_one_level_from_uniform(space: SearchSpace) -> None:
    for gene, units in enumerate(space.genes):
        (unit,) = (space.layout[i] for i in units)
        full = unit.size if space.prices is None else space.prices.costs[units[0]]
        share = space.budget.target * full
        low, high = int(space.limits.lower[gene]), int(space.limits.upper[gene])
        below = space.gene_saved(gene, max(low, -1))[0]
        above = space.gene_saved(gene, min(high, 1))[0]
        assert below <= share <= above


@pytest.mark.parametrize("zeros", [0, 9])
def test_base_is_spread_over_depth_and_roles(zeros: int) -> None:
    rng = np.random.default_rng(0)
    sizes = {"q": 144, "k": 48, "v": 48, "o": 144, "gate": 384, "up": 384, "down": 384}
    layout = Layout(
        [
            Unit(name=f"{b}.{r}", block=b, role=r, count=n, zeros=int(rng.integers(zeros + 1)))
            for b in range(32)
            for r, n in sizes.items()
        ]
    )
    genes = tuple((i,) for i in range(len(layout)))
    space = CountLevels(
        layout=layout, budget=Budget(0.25), bounds=Bounds.of(layout), genes=genes, reach=1,
        choices=list_pattern_counts(layout, "2:4"),
    )  # fmt: skip
    assert max(abs(x - 0.25) for x in space.base.grouped("role").values()) < 0.08
    eights = np.array(list(space.base.grouped("block").values())).reshape(4, 8).mean(axis=1)
    assert np.abs(eights - 0.25).max() < 0.04
    surplus = space.base.n_removed - space.budget.n_removed(layout)
    assert 0 <= surplus <= 24


def test_blocks_of_the_base_are_spread() -> None:
    layout = Layout([Unit(name=f"{b}", block=b, role="block", count=1, cost=9) for b in range(30)])
    genes = tuple((i,) for i in range(30))
    space = StepLevels(
        layout=layout, budget=Budget(0.3), bounds=Bounds.of(layout), genes=genes, reach=1, step=9
    )
    (removed,) = np.nonzero(space.base.removed)
    assert len(removed) == 9
    assert set(np.diff(removed)) <= {2, 3, 4, 5}


def test_base_leaves_genes_at_their_bounds() -> None:
    lower = np.array([0.5] * 6 + [0.0] * 6)
    space = toy_space(*[80] * 12, pattern="*:8", reach=8, target=0.3, lower=lower)
    assert space.base.removed[:6] == (40,) * 6
    assert sorted(set(space.base.removed[6:])) == [0, 10]


def test_repair() -> None:
    layout = toy_layout(20, 10, 5)
    units = [(0,), (1,), (2,)]
    rows = tie_counts(layout, Bounds.of(layout), units, list_pattern_counts(layout, "*:5"))
    tables = LevelBudget.of(build_table(layout, units, rows), Budget(0.3))
    assert [saved.tolist() for saved in tables.table.saved] == [
        [0, 4, 8, 12, 16, 20], [0, 2, 4, 6, 8, 10], [0, 1, 2, 3, 4, 5]]  # fmt: skip
    two, among = np.array([0, 1]), np.arange(3)  # 10 weights to remove
    # only the gene that rose can give back what is left over
    assert tables.repair(np.array([3, 0, 0]), create_generator(0, "r"), two, 0, 1).tolist() == [
        3,
        0,
        0,
    ]
    assert tables.repair(np.array([4, 0, 0]), create_generator(0, "r"), two, 0, 1).tolist() == [
        3,
        0,
        0,
    ]
    for i in range(40):
        # others first
        full = tables.repair(np.array([2, 3, 2]), create_generator(i, "r"), among, 0, 1)
        assert full[0] == 2
        assert tables.legal(full)
        # the gene that fell stays low
        short = tables.repair(np.array([1, 1, 0]), create_generator(i, "r"), among, 0, 1)
        assert short[1] <= 1
        assert tables.legal(short)
    # nothing to move: as it was
    assert tables.repair(
        np.array([0, 2, 0]), create_generator(0, "r"), two[1:], 0, 1
    ).tolist() == [
        0,
        2,
        0,
    ]


def test_structures_of_one_cost_remove_at_least_the_target() -> None:
    space = toy_space(10, 11, 12, cost=7, target=0.5, step=14)
    assert isinstance(space, EvenLevels)
    assert space.budget.n_removed(space.layout) == 116  # 16.5 structures
    assert space.base.n_removed == 17 * 7
    assert_legal(space, sorted(everything(space)))


def test_bounds_and_zeros_hold() -> None:
    layout = toy_layout(*[96] * 6, zeros=7)
    bounds = Bounds.of(layout, upper=np.array([0.5, 0.5, 1, 1, 1, 1]))
    genes = tuple((i,) for i in range(6))
    space = CountLevels(
        layout=layout, budget=Budget(0.4), bounds=bounds, genes=genes, reach=8,
        choices=list_pattern_counts(layout, "*:8"),
    )  # fmt: skip
    assert [table[0] for table in space.tables()] == [7] * 6
    assert [table[-1] for table in space.tables()] == [48, 48, 96, 96, 96, 96]
    assert_legal(space, [space.sample(create_generator(i, "z"), 4.0) for i in range(50)])


@pytest.mark.parametrize(("target", "allowed"), [(0.6, "0 to 48"), (0.51, "0 to 48")])
def test_out_of_reach_of_the_choices(target: float, allowed: str) -> None:
    with pytest.raises(InfeasibleBudgetError, match=f"out of reach.*{allowed}"):
        toy_space(48, 48, pattern="2:4", target=target)
    with pytest.raises(InfeasibleBudgetError, match=r"out of reach.*48 to 48"):
        toy_space(48, 48, pattern="2:4", target=0.3, lower=0.2)


def test_reach() -> None:
    wide, narrow = (toy_space(*[80] * 4, pattern="*:8", reach=reach) for reach in (8, 2))
    assert wide.limits.lower.tolist() == [-4] * 4
    assert wide.limits.upper.tolist() == [4] * 4
    assert narrow.limits.lower.tolist() == [-2] * 4
    assert narrow.limits.upper.tolist() == [2] * 4
    assert narrow.base == wide.base
    assert {len(table) for table in narrow.tables()} == {5}


def test_digest_tells_choices() -> None:
    spaces = [toy_space(*[80] * 4, pattern=pattern) for pattern in (None, "2:4", "*:4", "*:8")]
    assert len({space.digest for space in spaces}) == 4


@pytest.mark.parametrize("pattern", [None, "*:4"])
def test_known_optimum_of_toy_problems(pattern: str | None) -> None:
    cost = [1] * 4 if pattern else [4, 9, 4, 5]
    space = toy_space(40, 20, 24, 16, pattern=pattern, cost=cost, reach=3, step=20)
    problem = SeparableProblem(space, [3.0, 1.0, 9.0, 2.0])
    candidate, score = problem.optimum()
    scores = {c: problem.exact(space.profile(c)) for c in everything(space)}
    assert len(scores) > 10
    assert score == pytest.approx(min(scores.values()))
    assert scores[candidate] == pytest.approx(score)
