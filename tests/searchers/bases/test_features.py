"""Features against loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sparsity_search.searchers.bases.features import (
    Features,
    group_by_role,
    interpolate_losses,
    measure_depths,
)
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.testing.problems import toy_parametric, toy_space


def with_hint(space: SearchSpace) -> SearchSpace:
    rng = np.random.default_rng(0)
    low, high = space.limits.lower, space.limits.upper
    losses = tuple(rng.random(int(b - a) + 1) for a, b in zip(low, high, strict=True))
    return space.with_hints([Hint("toy", low, losses)])


@pytest.fixture
def space() -> SearchSpace:
    return with_hint(toy_space(*(100,) * 14))


def test_blocks_equal_loops(space: SearchSpace) -> None:
    rng = np.random.default_rng(1)
    candidates = [space.sample(rng, 2.0) for _ in range(9)]
    blocks = Features(space).blocks(np.array(candidates))
    names = list(dict.fromkeys(space.roles))
    for row, candidate in enumerate(candidates):
        assert blocks["levels"][row].tolist() == list(candidate)
        loss = space.hints[0].of_genes(candidate)
        by_name = [[g for g in range(14) if space.roles[g] == name] for name in names]
        place = {g: i / len(genes) for genes in by_name for i, g in enumerate(genes)}
        for i, genes in enumerate(by_name):
            assert blocks["roles"][row, i] == pytest.approx(np.mean([candidate[g] for g in genes]))
            assert blocks["toy.roles"][row, i] == pytest.approx(sum(loss[g] for g in genes))
        for part in range(5):
            inside = [candidate[g] for g in range(14) if int(5 * place[g]) == part]
            assert blocks["fifths"][row, part] == pytest.approx(np.mean(inside) if inside else 0)
        for part in range(3):
            inside = [loss[g] for g in range(14) if int(3 * place[g]) == part]
            assert blocks["toy.thirds"][row, part] == pytest.approx(sum(inside))
        squares = [
            (candidate[b] - candidate[a]) ** 2 for genes in by_name for a, b in pairwise(genes)
        ]
        assert blocks["roughness"][row] == pytest.approx(np.mean(squares))
        sums = [loss.sum(), np.sqrt(loss).sum()]
        assert blocks["toy.sums"][row] == pytest.approx(sums)


def test_without_hints_there_are_no_sums_of_losses() -> None:
    found = Features(toy_space()).blocks(np.zeros((2, 6)))
    assert list(found) == ["levels", "roles", "fifths", "roughness"]
    assert all(block.shape[0] == 2 for block in found.values())


def test_one_gene_a_role_has_no_neighbours() -> None:
    space = toy_parametric()
    found = Features(space).blocks(np.zeros((3, space.n_genes)))
    assert found["roughness"].tolist() == [[0.0]] * 3


def test_losses_between_and_beyond_levels(space: SearchSpace) -> None:
    hint = space.hints[0]
    levels = np.full((3, 14), float(hint.lower[0]))
    levels[1] += 0.25
    levels[2] -= 5
    found = interpolate_losses(hint, levels)
    first = np.array([loss[0] for loss in hint.losses])
    second = np.array([loss[1] for loss in hint.losses])
    assert found[0] == pytest.approx(first)
    assert found[1] == pytest.approx(0.75 * first + 0.25 * second)
    assert found[2] == pytest.approx(first)


def test_depth_is_the_place_within_a_role() -> None:
    roles = ("q", "up", "q", "q", "q")
    assert group_by_role(roles) == [[0, 2, 3, 4], [1]]
    assert measure_depths(roles) == [0.0, 0.0, 0.25, 0.5, 0.75]
