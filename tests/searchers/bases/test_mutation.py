from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.searchers.bases.mutation import Mutation, compute_stride_shares
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.testing.problems import ROLES, build_uneven_spaces, toy_space
from sparsity_search.testing.searcher import SPACES, assert_legal
from sparsity_search.utils.random import create_generator

#: Spaces of levels, of all kinds.
LEVELS = {name: space.of_levels for name, space in SPACES.items() if not space.parameters}
SPACE = toy_space(*(100,) * 12, reach=4)


def hinted(space: SearchSpace, seed: int = 0) -> SearchSpace:
    """Return the space with a random hint that rises with every level."""
    rng, levels = create_generator(seed, "hint"), space.limits
    spans = levels.upper - levels.lower + 1
    losses = tuple(rng.uniform(0, 1, span).cumsum() for span in spans)
    return space.with_hints([Hint("random", levels.lower, losses)])


def children(space: SearchSpace, mutation: Mutation, n: int = 200) -> np.ndarray:
    rng = create_generator(0, "children")
    return np.array([mutation.child(space, space.origin, rng) for _ in range(n)])


def test_numbers_of_switches_are_those_of_the_paper() -> None:
    """``min(U1, U2)`` of ``{1..3}`` is 1, 2, 3 with probabilities 5, 3 and 1 of 9."""
    wide = toy_space(*(100,) * 400, reach=4)
    found = children(wide, Mutation(strides=(1,)), 900)
    switches = Counter((np.abs(found).sum(axis=1) // 2).tolist())
    # two switches of one child meet the same gene seldom, with 400 of them
    shares = [switches[n] / 900 for n in (1, 2, 3)]
    assert shares == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.06)


def test_roles_keep_their_totals() -> None:
    found = children(SPACE, Mutation(within="role"))
    for role in ROLES:
        genes = [g for g, name in enumerate(SPACE.roles) if name == role]
        assert not found[:, genes].sum(axis=1).any()
    assert children(SPACE, Mutation())[:, genes].sum(axis=1).any()


def test_the_child_of_least_predicted_loss_wins() -> None:
    """The winner of a tournament is the best of as many children drawn one by one."""
    space = hinted(SPACE)
    single, of_five = Mutation(), Mutation(tournament=5)
    rng = create_generator(0, "same")
    drawn = [single.child(space.with_hints([]), space.origin, rng) for _ in range(50)]
    rng = create_generator(0, "same")
    for group in range(10):
        best = min(drawn[5 * group : 5 * group + 5], key=space.hints[0].loss)
        assert of_five.child(space, space.origin, rng) == best


def test_without_a_hint_there_is_no_tournament() -> None:
    assert (children(SPACE, Mutation(tournament=7)) == children(SPACE, Mutation())).all()


@pytest.mark.parametrize("name", build_uneven_spaces())
def test_tournaments_where_steps_differ(name: str) -> None:
    space = hinted(build_uneven_spaces()[name])
    rng, advice = create_generator(0, "uneven"), space.hints[0]
    start = space.sample(rng)
    picked = [Mutation(tournament=8).child(space, start, rng) for _ in range(40)]
    plain = [Mutation().child(space, start, rng) for _ in range(40)]
    assert all(child in space for child in picked)
    assert np.mean([advice.loss(c) for c in picked]) < np.mean([advice.loss(c) for c in plain])


def test_a_hint_counts_each_gene_at_its_level() -> None:
    hint = Hint("x", np.array([-1, 0]), (np.array([3.0, 5.0, 9.0]), np.array([1.0, 2.0])))
    assert hint.of_genes((1, 0)).tolist() == [9.0, 1.0]
    assert hint.loss((-1, 1)) == 5.0


def test_strides_that_won_become_likelier() -> None:
    start = (0, 0, 0)
    winners = [(start,), ((4, -4, 0),), ((4, -4, 0),), ((4, -8, 4),)]
    shares = compute_stride_shares((1, 2, 4), winners)
    # two wins of stride 4; a later round that changes nothing fades the first by a tenth
    points = 1 + (1 * 0.9 * 0.9) + 1
    assert shares == pytest.approx(np.array([1, 1, points]) / (2 + points))
    assert compute_stride_shares((1, 2), [(start,)]).tolist() == [0.5, 0.5]
    assert compute_stride_shares((1, 2), [(start,), ()]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "settings",
    [{"max_switches": 0}, {"strides": ()}, {"strides": (0,)}, {"within": "no"}, {"tournament": 0}],
)
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Mutation(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LEVELS)
def test_every_child_of_a_long_chain_is_in_budget(name: str) -> None:
    """1,500 generations in each space; their units have mixed sizes and steps."""
    space, mutation = LEVELS[name], Mutation(strides=(1, 2, 4))
    low, high = space.limits.lower, space.limits.upper
    saved = [
        [int(space.gene_saved(gene, level).sum()) for level in range(low[gene], high[gene] + 1)]
        for gene in range(space.n_genes)
    ]
    budget = space.budget.n_removed(space.layout)
    rng, child, seen = create_generator(0, name), space.sample(create_generator(1, name)), set()
    for _ in range(1_500):
        child = mutation.child(space, child, rng)
        places = np.array(child) - low
        assert (places >= 0).all()
        assert (np.array(child) <= high).all()
        surplus = sum(row[place] for row, place in zip(saved, places, strict=True)) - budget
        back = [
            row[place] - row[place - 1] for row, place in zip(saved, places, strict=True) if place
        ]
        assert 0 <= surplus < min(back, default=1)
        seen.add(child)
    assert len(seen) > 50
    assert_legal(space, list(seen)[:50])
