from __future__ import annotations

import heapq

import numpy as np
import pytest
from torch import Tensor

from sparsity_search.allocators.greedy import GreedyAllocator
from sparsity_search.allocators.knapsack import KnapsackAllocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from tests.helpers.solver_problems import layout_of, random_scores
from tests.helpers.solver_toys import Toy


@pytest.mark.parametrize("target", [0.2, 0.63, 0.9])
def test_takes_the_cheapest_weight_next(target: float) -> None:
    layout = layout_of([40, 10, 70, 25])  # small units: a step is one weight
    scores = random_scores(layout, 3, convex=True)
    curves = [curve(np.arange(unit.count + 1)) for curve, unit in zip(
        scores.curves, layout, strict=True
    )]  # fmt: skip
    heap = [(curve[1] - curve[0], i) for i, curve in enumerate(curves)]
    heapq.heapify(heap)
    removed = [0] * len(layout)
    for _ in range(Budget(target).n_removed(layout)):
        _, i = heapq.heappop(heap)
        removed[i] += 1
        if removed[i] < layout.counts[i]:
            heapq.heappush(heap, (curves[i][removed[i] + 1] - curves[i][removed[i]], i))
    found = (
        GreedyAllocator(sensitivity=Toy()).solve(scores, Budget(target), Bounds.of(layout)).profile
    )
    assert found.removed == tuple(removed)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_equals_the_knapsack_on_convex_losses(
    target: float, tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    bounds = Bounds.of(tiny_subject.layout, 0.05, 0.99)
    profiles = [
        solver(sensitivity=Toy(power=3.0)).allocate(
            tiny_subject, tiny_tokens, Budget(target), bounds
        )
        for solver in (GreedyAllocator, KnapsackAllocator)
    ]
    scores = GreedyAllocator(sensitivity=Toy(power=3.0)).measure(tiny_subject, tiny_tokens)
    first, second = (scores.loss(profile) for profile in profiles)
    assert first == pytest.approx(second, rel=1e-5)  # rounding to whole weights differs


def test_does_not_see_beyond_a_ridge() -> None:
    # what tells it from the knapsack: a unit that is free after a first expensive level
    layout = layout_of([100, 100])
    scores = random_scores(layout, 0)
    object.__setattr__(
        scores,
        "losses",
        (np.array([8.0, 8.0, 8.0, 8.0]), np.array([1.0, 4.0, 9.0, 16.0])),
    )
    found = (
        GreedyAllocator(sensitivity=Toy()).solve(scores, Budget(0.5), Bounds.of(layout)).profile
    )
    best = (
        KnapsackAllocator(sensitivity=Toy()).solve(scores, Budget(0.5), Bounds.of(layout)).profile
    )
    assert best.removed == (100, 0)
    assert scores.loss(found) > scores.loss(best)
