"""Spaces in which each role has a budget of its own."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.spaces.prices import PriceCurve, Prices
from sparsity_search.spaces.separate_levels import SeparateLevels
from sparsity_search.testing.problems import toy_layout
from sparsity_search.utils.random import create_generator


def sublayers(blocks: int, attention: int, feed_forward: int) -> Layout:
    """Return the sublayers of a model, whose weights these are."""
    return Layout(
        [
            Unit(name=f"{block}.{role}", block=block, role=role, count=1, cost=cost)
            for block in range(blocks)
            for role, cost in (("attention", attention), ("feed_forward", feed_forward))
        ]
    )


#: Weights of the sublayers of Llama-2-7B, Mistral-7B and SmolLM2-135M.
LLAMA, MISTRAL, SMOLLM = (67_108_864, 135_266_304), (41_943_040, 176_160_768), (884_736, 2_654_208)


def equal_drops(layout: Layout, target: float) -> SearchSpace:
    file = load_space("equal_drops")
    assert isinstance(file, SpaceFile)
    return file.build(layout, Budget(target), {})


def dropped(profile: SparsityProfile) -> tuple[int, int]:
    """Return how many attentions and how many feed-forwards a profile drops."""
    removed = np.array(profile.removed)
    return int(removed[::2].sum()), int(removed[1::2].sum())


def written(folder: Path, **changes: object) -> SpaceFile:
    value = {"version": 1, "description": "x", "gene": ["name"], "budget_per": "role"}
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**value, "step": 0.1, "reach": 3, **changes}))
    file = load_space(str(path))
    assert isinstance(file, SpaceFile)
    return file


@pytest.mark.parametrize(
    ("blocks", "weights", "target", "k"),
    [
        (32, LLAMA, 0.25, 8),
        (32, LLAMA, 0.5, 16),  # one budget in weights: 14 attentions, 17 feed-forwards
        (32, MISTRAL, 0.5, 16),
        (32, MISTRAL, 0.375, 12),
        (16, LLAMA, 0.25, 4),
        (30, SMOLLM, 0.375, 12),  # 11.25
    ],
)
def test_as_many_of_each(blocks: int, weights: tuple[int, int], target: float, k: int) -> None:
    layout = sublayers(blocks, *weights)
    space, rng = equal_drops(layout, target), create_generator(0, "drops")
    walk: list[Candidate] = [space.origin]
    for stride in (1, 2) * 20:
        walk.append(space.switch(walk[-1], rng, stride, range(space.n_genes)) or walk[-1])
    assert len(set(walk)) > 15
    start = space.nearest(Budget(target).uniform(layout))
    draws = [space.sample(rng, spread) for spread in (0.5, 1000.0) for _ in range(10)]
    for candidate in (start, *walk, *draws):
        assert dropped(space.profile(candidate)) == (k, k)


def test_random_draws_do_not_lie_around_the_start() -> None:
    """Of 8 of 32, two independent draws share 2 in each role."""
    space = equal_drops(sublayers(32, *LLAMA), 0.25)
    base, rng = np.array(space.base.removed), create_generator(0, "draws")
    drawn = [np.array(space.profile(space.sample(rng, 1000.0)).removed) for _ in range(100)]
    assert np.mean([base @ each for each in drawn]) == pytest.approx(4, abs=0.4)
    assert np.mean(drawn, axis=0) == pytest.approx(np.full(64, 0.25), abs=0.16)


def test_legal_are_the_levels_that_are_legal_in_each_part(tmp_path: Path) -> None:
    units = toy_layout(20, 12, 30, 20, 20, 12, 30, 20)
    layout = Layout([unit for unit in units if unit.role in ("q", "up")])
    space = written(tmp_path, reach=1).build(layout, Budget(0.5), {})
    assert isinstance(space, SeparateLevels)
    assert [part.layout[0].role for part in space.parts] == ["q", "up"]
    assert space.genes == ((0,), (1,), (2,), (3,))
    found = {each for each in itertools.product((-1, 0, 1), repeat=4) if each in space}
    assert found == {(q, up, -q, -up) for q, up in itertools.product((-1, 0, 1), repeat=2)}
    for candidate in sorted(found):
        profile = space.profile(candidate)
        assert profile.grouped("role") == {"q": 0.5, "up": 0.5}
        assert space.nearest(profile) == candidate
        assert space.balance(np.array(candidate)) == candidate
    assert space.tables() == [(8, 10, 12), (12, 15, 18)] * 2  # a step of each role's own size


def test_switches_stay_in_a_part(tmp_path: Path) -> None:
    layout = toy_layout(20, 12, 30, 20, 20, 12, 30, 20)
    space = written(tmp_path).build(layout, Budget(0.5), {})
    rng, moves = create_generator(0, "switch"), set()
    for _ in range(200):
        moved = space.switch(space.origin, rng, 1, [0, 2, 4, 5, 6])
        assert moved is not None
        moves.add(tuple(np.flatnonzero(moved).tolist()))
    assert moves == {(0, 4), (2, 6)}  # gene 5 has nobody to switch with
    assert space.switch(space.origin, rng, 1, [0, 1]) is None
    assert space.switch(space.origin, rng, 1, []) is None


def test_each_role_removes_its_share_at_least(tmp_path: Path) -> None:
    layout = toy_layout(7, 9, 11, 13)
    for target in (0.3, 0.5, 0.6):
        space = written(tmp_path).build(layout, Budget(target), {})
        shares = [count * target for count in (7, 9, 11, 13)]
        assert list(space.base.removed) == [int(np.ceil(share)) for share in shares]


def test_stages_refine_every_part(tmp_path: Path) -> None:
    layout = toy_layout(*(100,) * 8)
    space = written(tmp_path).build(layout, Budget(0.5), {})
    centre = space.profile((1, 0, 0, -1, -1, 0, 0, 1))
    finer = space.refined(centre)
    assert finer.base == centre
    assert finer.profile((1, 0, 0, 0, -1, 0, 0, 0)).removed == (65, 50, 50, 40, 35, 50, 50, 60)
    assert finer.digest != space.digest


def test_prices_count_for_each_role() -> None:
    """What a role has to save is a share of the cost of its own units."""
    layout = sublayers(3, 10, 10)
    saved = (1.0, 1.0, 1.0, 3.0, 4.0, 2.0)  # attention and feed-forward in turn
    prices = Prices(layout, "time", [PriceCurve((0, 1), (0.0, each)) for each in saved])
    file = SpaceFile(version=1, description="x", gene=["name"], step=1, reach=1, budget_per="role")
    space = file.build(layout, Budget(0.5), {}, prices)
    for i in range(20):
        removed = space.profile(space.sample(create_generator(i, "p"), 9.0)).removed
        for own in (slice(0, None, 2), slice(1, None, 2)):
            taken = sum(np.array(saved[own]) * removed[own])
            assert taken >= sum(saved[own]) / 2
        assert removed[4]  # without it attentions save 2 of 6
    assert not space.in_weights


def test_profiles_of_other_splits_are_moved() -> None:
    space = equal_drops(sublayers(8, 1, 2), 0.25)
    profile = from_counts(space.layout, [1, 0] * 5 + [0] * 6)
    assert dropped(profile) == (5, 0)
    assert dropped(space.project(profile)) == (2, 2)


def test_infeasible_budgets_name_the_role(tmp_path: Path) -> None:
    layout = toy_layout(10, 10, 10, 10)
    with pytest.raises(InfeasibleBudgetError, match=r"^k: .*out of reach"):
        written(tmp_path).build(layout, Budget(0.5), {"k": (0.0, 0.4)})
