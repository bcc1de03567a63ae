from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsity_search.allocators.knapsack import KnapsackAllocator
from sparsity_search.allocators.lagrangian import LagrangianAllocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.solvers.lagrangian import find_hull
from tests.helpers.solver_problems import layout_of, random_scores
from tests.helpers.solver_toys import Toy


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_equals_the_knapsack_on_convex_losses(
    target: float, tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    bounds = Bounds.of(tiny_subject.layout, 0.05, 0.99)
    toy = Toy(power=3.0)
    scores = LagrangianAllocator(sensitivity=toy).measure(tiny_subject, tiny_tokens)
    first, second = (
        scores.loss(solver(sensitivity=toy).solve(scores, Budget(target), bounds).profile)
        for solver in (LagrangianAllocator, KnapsackAllocator)
    )
    assert first == pytest.approx(second, rel=1e-5)  # rounding to whole weights differs


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_as_steep_everywhere(seed: int) -> None:
    layout = layout_of([4000, 2000, 10000, 6000])
    scores = random_scores(layout, seed, convex=True)
    found = (
        LagrangianAllocator(sensitivity=Toy())
        .solve(scores, Budget(0.5), Bounds.of(layout))
        .profile
    )
    slopes = []
    for curve, count, unit in zip(scores.curves, found.removed, layout, strict=True):
        before, after = curve(np.array([count - 25, count + 25]))
        if 25 < count < unit.count - 25:
            slopes.append((after - before) / 50)
    assert len(slopes) >= 2
    assert max(slopes) < 1.1 * min(slopes)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-10, 10)), min_size=1, max_size=12))
def test_hull(points: list[tuple[int, float]]) -> None:
    x = np.cumsum([gap for gap, _ in points])
    y = np.array([height for _, height in points])
    corners = find_hull(x, y)
    assert corners[0] == 0
    assert corners[-1] == len(x) - 1
    slopes = np.diff(y[corners]) / np.diff(x[corners])
    assert (np.diff(slopes) > -1e-9).all()
    assert (np.interp(x, x[corners], y[corners]) <= y + 1e-9).all()
