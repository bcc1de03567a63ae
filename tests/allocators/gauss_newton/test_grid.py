from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.allocators.gauss_newton.grid import space_counts, step_grid
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile

LAYOUTS = st.lists(
    st.tuples(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=4,
)


@given(LAYOUTS, st.floats(0.005, 1))
@settings(max_examples=80)
def test_space_counts(shapes: list[tuple[int, float, float, float]], spacing: float) -> None:
    units = [Unit(name=f"{i}", block=i, role="x", count=n) for i, (n, *_) in enumerate(shapes)]
    layout = Layout(units)
    ordered = [sorted(rest) for _, *rest in shapes]
    low, middle, high = (
        np.array([round(at[k] * u.count) for at, u in zip(ordered, units, strict=True)])
        for k in range(3)
    )
    centre = SparsityProfile(layout, tuple(middle.tolist()))
    found = space_counts(layout, Bounds(lower=low, upper=high), centre, spacing)
    for unit, table, a, b, c in zip(units, found, low, middle, high, strict=True):
        assert table[0] == a
        assert table[-1] == c
        assert b in table
        assert table.dtype == np.int64
        step = max(1.0, spacing * unit.count)
        gaps = [y - x for x, y in pairwise(table)]
        assert all(0 < gap <= step + 1 for gap in gaps)
        inner = [abs(count - b) / step for count in table[1:-1]]
        assert all(abs(x - round(x)) <= 0.5 / step + 1e-9 for x in inner)


@pytest.mark.parametrize(
    ("bounds", "spacing", "span", "levels"),
    [
        ((0.3, 0.9), 0.05, 0.3, 6),  # the mean distance is less: one step is short
        ((0.3, 0.9), 0.1, 0.5, 8),  # all there are
        ((0.0, 1.0), 0.2, 0.1, 1),  # at least one
        ((0.0, 1.0), 0.025, 0.1, 4),
    ],
)
def test_levels_within_a_span(
    bounds: tuple[float, float], spacing: float, span: float, levels: int
) -> None:
    layout = Layout([Unit(name="a", block=0, role="x", count=1013)])
    start = SparsityProfile(layout, (round(0.53 * 1013),))
    grid = step_grid(start, Bounds.of(layout, *bounds), spacing)
    assert grid.levels_within(span).tolist() == [levels]
    (counts,) = grid.within(grid.levels_within(span)).counts
    assert max(abs(count - start.removed[0]) for count in counts) <= max(span, spacing) * 1013 + 1


def test_reach_in_levels_of_each_unit() -> None:
    layout = Layout([Unit(name=n, block=0, role="x", count=c) for n, c in (("a", 200), ("b", 3))])
    grid = step_grid(Budget(0.5).uniform(layout), Bounds.of(layout), 0.02)
    assert grid.reach(0.1).tolist() == [5, 1]  # 5 % of 200 items each; one of 3
    assert grid.reach(0.4).tolist() == [20, 1]
