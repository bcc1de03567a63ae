from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import from_counts
from sparsity_search.spaces.even_levels import EvenLevels
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.spaces.step_levels import ShareLevels
from sparsity_search.testing.problems import (
    SeparableProblem,
    build_uneven_spaces,
    toy_layout,
    toy_space,
)
from sparsity_search.utils.random import create_generator

TIES = ((0, 5), (1,), (2, 3, 4))
SPACES = {
    "equal": toy_space(),
    "mixed": toy_space(37, 1000, 55, 90, 230, 101),
    "tied": toy_space(37, 1000, 55, 90, 230, 101, genes=TIES, step=7, reach=12),
    "bounds": toy_space(100, 200, 300, 100, lower=0.4, upper=0.6, step=3, reach=9),
    "steep": toy_space(100, 200, 300, 100, target=0.95, step=1, reach=50),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


def even(
    layout: Layout, genes: tuple[tuple[int, ...], ...], *, step: int, reach: int
) -> EvenLevels:
    bounds = Bounds.of(layout)
    return EvenLevels(
        layout=layout, budget=Budget(0.5), bounds=bounds, genes=genes, step=step, reach=reach
    )


def everything(space: SearchSpace) -> Iterator[Candidate]:
    ranges = [
        range(low, high + 1)
        for low, high in zip(space.limits.lower, space.limits.upper, strict=True)
    ]
    return (levels for levels in itertools.product(*ranges) if sum(levels) == 0)


def assert_legal(space: SearchSpace, candidate: Candidate) -> None:
    profile = space.profile(candidate)
    removed = np.array(profile.removed)
    assert profile.n_removed == space.budget.n_removed(space.layout)
    assert (space.bounds.lower <= removed).all()
    assert (removed <= space.bounds.upper).all()


def test_random_switches_keep_the_budget(space: SearchSpace) -> None:
    rng = create_generator(0, "walk")
    candidate, seen = space.origin, set()
    for i in range(10_000):
        moved = space.switch(candidate, rng, 1 + i % 3, range(space.n_genes))
        if moved is None:
            continue
        change = sorted(np.array(moved) - np.array(candidate))
        assert (change[0], change[-1]) == (-1 - i % 3, 1 + i % 3)
        assert np.count_nonzero(change) == 2
        candidate = moved
        seen.add(candidate)
        assert candidate in space
        if i % 25 == 0:
            assert_legal(space, candidate)
    assert len(seen) > 30


def test_switch_reaches_everything() -> None:
    space = toy_space(100, 100, 100, reach=2)
    rng, candidate, seen = create_generator(0, "walk"), space.origin, set()
    for _ in range(2000):
        candidate = space.switch(candidate, rng, 1, range(3)) or candidate
        seen.add(candidate)
    assert seen == set(everything(space))


def test_switch_stays_among_the_genes_named(space: SearchSpace) -> None:
    rng = create_generator(0, "walk")
    for _ in range(50):
        moved = space.switch(space.origin, rng, 1, [0, 2])
        assert moved is not None
        assert np.flatnonzero(moved).tolist() == [0, 2]


@pytest.mark.parametrize("genes", [[], [1], [0, 1]])
def test_switch_where_nothing_can_move(genes: list[int]) -> None:
    space = toy_space(100, 100, 100, lower=np.array([0.5, 0.5, 0]), upper=1.0)
    moves = {space.switch(space.origin, create_generator(i, "x"), 1, genes) for i in range(20)}
    assert moves == {None}
    # gene 1 can only rise and gene 2 do both: one pair is left, with 2 going down
    assert space.switch(space.origin, create_generator(0, "x"), 1, [1, 2]) == (0, 1, -1)


def test_levels_stop_at_bounds_and_reach() -> None:
    space = toy_space(100, 200, 1000, lower=0.3, upper=np.array([0.55, 0.6, 0.7]), step=10)
    assert space.limits.lower.tolist() == [-2, -4, -4]
    assert space.limits.upper.tolist() == [0, 2, 4]
    assert (0, 2, -2) in space
    for outside in [(1, 0, -1), (0, 0, 5), (0, 3, -3), (0, 1, 0), (0, 0), [0, 0, 0], "no"]:
        assert outside not in space


def test_every_candidate_is_legal_and_distinct() -> None:
    space = toy_space(37, 90, 55, 70, genes=((0, 3), (1,), (2,)), step=7)
    candidates = list(everything(space))
    for candidate in candidates:
        assert_legal(space, candidate)
    assert len({space.profile(c) for c in candidates}) == len(candidates) > 20


def test_profile_of_an_outsider_is_an_error(space: SearchSpace) -> None:
    with pytest.raises(ConfigError, match="not in this search space"):
        space.profile((1,) + (0,) * (space.n_genes - 1))


def test_level_zero_is_uniform(space: SearchSpace) -> None:
    base = space.budget.uniform(space.layout, space.bounds)
    assert space.profile(space.origin) == space.base == base


def test_one_level_moves_one_step_of_weights() -> None:
    space = SPACES["tied"]
    removed = np.array(space.profile((1, 2, -3)).removed) - np.array(space.base.removed)
    assert [removed[list(gene)].sum() for gene in TIES] == [7, 14, -21]
    # tied units move by the same sparsity: 7 weights over sizes 37 and 101 are 2 and 5
    assert removed[[0, 5]].tolist() == [2, 5]


def test_tables_hold_what_profiles_use() -> None:
    space = toy_space(37, 90, 55, 70, genes=((0, 3), (1,), (2,)), step=7, reach=3)
    used = [set() for _ in space.layout]
    for candidate in everything(space):
        for counts, count in zip(used, space.profile(candidate).removed, strict=True):
            counts.add(count)
    for table, counts in zip(space.tables(), used, strict=True):
        assert list(table) == sorted(set(table))
        assert counts <= set(table)
    assert [set(table) for table in space.tables()] == used  # nothing is made in vain here


@given(st.lists(st.floats(-9, 9), min_size=4, max_size=4))
def test_balance_is_the_nearest_of_all(levels: list[float]) -> None:
    space = toy_space(100, 60, 80, 300, lower=np.array([0.3, 0, 0, 0.47]))
    wanted = np.array(levels)
    best = min(((np.array(c) - wanted) ** 2).sum() for c in everything(space))
    found = space.balance(wanted)
    assert found in space
    assert ((np.array(found) - wanted) ** 2).sum() == pytest.approx(best)


def test_nearest_inverts_profile(space: SearchSpace) -> None:
    rng = create_generator(0, "some")
    for _ in range(50):
        candidate = space.sample(rng, 3.0)
        assert space.nearest(space.profile(candidate)) == candidate


def test_nearest_is_the_nearest_of_all() -> None:
    space = toy_space(100, 100, 100, 100, reach=3)
    for seed in range(30):
        wanted = np.random.default_rng(seed).uniform(0, 1, 4)
        profile = Budget(0.5).project(space.layout, wanted)
        change = np.array(profile.removed) - np.array(space.base.removed)
        best = min((((np.array(c) * 10 - change) ** 2).sum()) for c in everything(space))
        found = np.array(space.nearest(profile)) * 10
        assert ((found - change) ** 2).sum() == best


def test_sample_spreads(space: SearchSpace) -> None:
    few = [space.sample(create_generator(i, "s"), 0.5) for i in range(200)]
    many = [space.sample(create_generator(i, "s"), 2.0) for i in range(200)]
    assert all(candidate in space for candidate in few + many)
    assert np.std(many) > np.std(few) > 0
    assert [space.sample(create_generator(i, "s"), 0.5) for i in range(200)] == few


def test_roles_of_genes() -> None:
    assert toy_space(10, 10, 10, 10, 10, 10, step=1).roles == ("q", "k", "up", "down", "q", "k")
    tied = toy_space(10, 10, 10, 10, 10, 10, step=1, genes=((0, 4), (1, 2, 5), (3,)))
    assert tied.roles == ("q", "k+up", "down")


def test_digest_depends_on_everything() -> None:
    spaces = [
        toy_space(),
        toy_space(100, 100, 100, 100, 100, 101),
        toy_space(target=0.6),
        toy_space(step=11),
        toy_space(reach=5),
        toy_space(lower=0.1),
        toy_space(upper=0.9),
        toy_space(genes=((0, 1), (2,), (3,), (4,), (5,))),
    ]
    assert len({space.digest for space in spaces}) == len(spaces)
    assert toy_space().digest == spaces[0].digest


@pytest.mark.parametrize("genes", [((0,), (1,)), ((0, 1), (1, 2)), ((0, 1, 2, 3),), ()])
def test_genes_partition_the_units(genes: tuple[tuple[int, ...], ...]) -> None:
    layout = toy_layout(10, 10, 10)
    with pytest.raises(ConfigError, match="every unit exactly once"):
        even(layout, genes, step=1, reach=1)


@pytest.mark.parametrize(("step", "reach"), [(0, 1), (1, 0)])
def test_step_and_reach_are_positive(step: int, reach: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        toy_space(step=step, reach=reach)


def test_step_is_whole_items() -> None:
    layout = toy_layout(10, 10, cost=4)
    with pytest.raises(ConfigError, match="6 weights is not a whole number of items"):
        even(layout, ((0,), (1,)), step=6, reach=1)


def test_structures() -> None:
    layout = toy_layout(10, 20, 30, cost=4)
    genes = ((0,), (1,), (2,))
    space = even(layout, genes, step=8, reach=2)
    assert space.profile((1, 1, -2)).removed == (7, 12, 11)


def test_digests_and_draws_stay() -> None:
    """Journals and run folders of earlier versions hold these."""
    space, rng = SPACES["tied"], create_generator(0, "pinned")
    assert space.digest == "a376e16f5d7c6723"
    assert [space.sample(rng, 3.0) for _ in range(3)] == [(-2, 0, 2), (2, -3, 1), (0, -1, 1)]
    candidate, path = space.origin, []
    for stride in (1, 2, 4, 1):
        candidate = space.switch(candidate, rng, stride, range(3)) or candidate
        path.append(candidate)
    assert path == [(0, 1, -1), (-2, 1, 1), (2, 1, -3), (1, 2, -3)]


def test_infeasible() -> None:
    with pytest.raises(InfeasibleBudgetError, match="out of reach"):
        toy_space(upper=0.4)


@pytest.mark.parametrize("genes", [None, ((0, 3), (1,), (2,))])
def test_known_optimum_of_toy_problems(genes: tuple[tuple[int, ...], ...] | None) -> None:
    space = toy_space(100, 60, 80, 110, genes=genes, lower=np.array([0, 0, 0.45, 0]))
    problem = SeparableProblem(space, [3.0, 1.0, 9.0, 2.0])
    candidate, score = problem.optimum()
    assert problem.exact(space.profile(candidate)) == pytest.approx(score)
    assert min(problem.exact(space.profile(c)) for c in everything(space)) == pytest.approx(score)


def test_counts_are_plain_integers(space: SearchSpace) -> None:
    profile = space.profile(space.origin)
    assert from_counts(space.layout, profile.removed) == profile
    assert {type(n) for n in (*profile.removed, *space.origin, *space.tables()[0])} == {int}


SHARES = toy_space(400, 100, 200, 50, share=0.125, target=0.5, reach=4)


def test_a_share_moves_each_gene_by_its_own_size() -> None:
    """Týr-the-Pruner's steps: eighths of every unit, whatever its size."""
    assert isinstance(SHARES, ShareLevels)
    for gene, count in enumerate((400, 100, 200, 50)):
        counts = [int(SHARES.gene_counts(gene, level)[0]) for level in range(-4, 5)]
        assert np.abs(np.diff(counts) - count / 8).max() < 1
        assert abs(counts[4] - count / 2) <= 0.02 * count


@pytest.mark.parametrize(
    "space",
    [
        toy_space(40, 1000, 55, 90),
        SHARES,
        build_uneven_spaces()["width"],
        build_uneven_spaces()["blocks"],
    ],
    ids=["even", "share", "width", "blocks"],
)
def test_the_space_around_a_result_has_half_the_step(space: SearchSpace) -> None:
    found = space.profile(space.sample(create_generator(0, "found")))
    finer = space.refined(found)
    if isinstance(space, EvenLevels):
        assert finer.base == found
    # a finer step may allow what the surplus was too small for before
    changes = np.array(found.removed) - np.array(finer.base.removed)
    assert (changes >= 0).all()
    assert finer.profile(finer.origin) == finer.base
    assert finer.digest != space.digest
    assert finer.genes == space.genes

    def step(of: SearchSpace, gene: int) -> int:
        low = int(of.limits.lower[gene])
        return int((of.gene_saved(gene, low + 1) - of.gene_saved(gene, low)).sum())

    for gene in range(space.n_genes):
        granule = int(space.layout.costs[gene])
        assert changes[gene] * granule <= step(finer, gene)
        if finer.limits.lower[gene] < 0 and space.limits.lower[gene] < 0:
            assert step(finer, gene) <= step(space, gene) / 2 + granule
    for seed in range(20):
        candidate = finer.sample(create_generator(seed, "finer"))
        assert candidate in finer
        assert finer.profile(candidate).n_removed >= space.budget.n_removed(space.layout)


@pytest.mark.parametrize("name", ["2:4", "*:8", "options"])
def test_patterns_have_no_finer_step(name: str) -> None:
    space = build_uneven_spaces()[name]
    with pytest.raises(ConfigError, match="no step"):
        space.refined(space.base)
