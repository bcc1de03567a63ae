from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsity_search.allocators.angular_distance as module
from sparsity_search.allocators.angular_distance import (
    AngularDistanceAllocator,
    compute_angular_distances,
)
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds
from sparsity_search.testing.models import tiny_llama
from tests.allocators.test_block_influence import outputs
from tests.helpers.depth_models import removed_by


@pytest.fixture
def subject() -> PrunableModel:
    return PrunableModel(tiny_llama(layers=6), units="blocks")


def bounds_of(lower: list[int], upper: list[int]) -> Bounds:
    return Bounds(lower=np.array(lower), upper=np.array(upper))


def test_distances(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(6))]
    states = [x[:, -1].numpy() for x in outputs(subject.model, tiny_tokens, names)]
    found = compute_angular_distances(subject, tiny_tokens)
    for a, first in enumerate(states):
        for b, second in enumerate(states):
            angles = [
                math.acos(min(1.0, float(x @ y / math.sqrt((x @ x) * (y @ y))))) / math.pi
                for x, y in zip(first, second, strict=True)
            ]
            assert float(found[a, b]) == pytest.approx(np.mean(angles), abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_best_run_goes(subject: PrunableModel, tiny_tokens: Tensor, n: int) -> None:
    distances = compute_angular_distances(subject, tiny_tokens).numpy()
    best = min(range(7 - n), key=lambda start: distances[start, start + n])
    expected = list(range(best, best + n))
    assert removed_by(AngularDistanceAllocator(), subject, tiny_tokens, n) == expected


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    """States on a line: the distance of two blocks is the way between them, 0 at block 4."""
    places = torch.tensor([0.0, 0.10, 0.15, 0.31, 0.50, 0.50, 0.60])
    found = (places[:, None] - places).abs()
    monkeypatch.setattr(module, "compute_angular_distances", lambda *_: found)


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize(
    ("n", "removed"), [(1, [4]), (2, [4, 5]), (3, [3, 4, 5]), (4, [1, 2, 3, 4])]
)
def test_golden(subject: PrunableModel, tiny_tokens: Tensor, n: int, removed: list[int]) -> None:
    assert removed_by(AngularDistanceAllocator(), subject, tiny_tokens, n) == removed


@pytest.mark.usefixtures("line")
def test_bounds_split_runs(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    """Without block 3 the longest run is of three blocks; the fourth comes from the rest."""
    bounds = bounds_of([0] * 6, [1, 1, 1, 0, 1, 1])
    assert removed_by(AngularDistanceAllocator(), subject, tiny_tokens, 4, bounds) == [0, 1, 2, 4]


@pytest.mark.usefixtures("line")
def test_what_is_gone_does_not_split_runs(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    """Block 1 must go: with it, blocks 0 and 2 are one run of two new ones."""
    bounds = bounds_of([0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1])
    assert removed_by(AngularDistanceAllocator(), subject, tiny_tokens, 3, bounds) == [0, 1, 2]


def test_equal_runs_go_from_the_front(
    subject: PrunableModel, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compute_angular_distances", lambda *_: torch.zeros(7, 7))
    assert removed_by(AngularDistanceAllocator(), subject, tiny_tokens, 3) == [0, 1, 2]


def test_runs_are_of_neighbours(tiny_tokens: Tensor) -> None:
    """Excluded blocks, which are no units, split runs too."""
    subject = PrunableModel(tiny_llama(layers=6), r"layers\.2$", units="blocks")
    removed = removed_by(AngularDistanceAllocator(), subject, tiny_tokens, 3)
    blocks = [subject.layout[i].block for i in removed]
    assert all(b == a + 1 for a, b in pairwise(blocks))
    assert 2 not in blocks
