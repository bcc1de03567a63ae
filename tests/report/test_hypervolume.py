from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.report.hypervolume import (
    FrontPoint,
    compute_hypervolume,
    select_front,
    trace_hypervolume,
)

POINTS = st.lists(
    st.builds(FrontPoint, st.integers(1, 9).map(lambda i: i / 10), st.integers(0, 12).map(float)),
    max_size=8,
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[FrontPoint]) -> None:
    def beaten(point: FrontPoint) -> bool:
        return any(
            other.sparsity >= point.sparsity
            and other.score <= point.score
            and (other.sparsity, other.score) != (point.sparsity, point.score)
            for other in points
        )

    expected = sorted({(p.sparsity, p.score) for p in points if not beaten(p)})
    assert [(p.sparsity, p.score) for p in select_front(points)] == expected


@given(POINTS, st.integers(1, 12))
def test_the_hypervolume_is_the_area_counted_cell_by_cell(
    points: list[FrontPoint], worst: int
) -> None:
    cells = itertools.product(np.arange(0.05, 1, 0.1), np.arange(0.5, worst, 1))
    dominated = sum(any(p.sparsity > x and p.score < y for p in points) for x, y in cells)
    assert compute_hypervolume(points, float(worst)) == pytest.approx(0.1 * dominated)


def test_it_never_shrinks_over_time() -> None:
    runs = [(0.5, [(1.0, 4.0), (3.0, 2.0)]), (0.7, [(2.0, 6.0), (4.0, 5.0)]), (0.6, [])]
    found = trace_hypervolume(runs, 10.0)
    assert [seconds for seconds, _ in found] == [1.0, 3.0, 5.0, 7.0]
    areas = [0.5 * 6, 0.5 * 8, 0.5 * 8 + 0.2 * 4, 0.5 * 8 + 0.2 * 5]
    assert [area for _, area in found] == pytest.approx(areas)


def test_nothing_is_no_area() -> None:
    assert compute_hypervolume([], 5.0) == 0.0
    assert select_front([]) == []
    assert trace_hypervolume([], math.inf) == []
