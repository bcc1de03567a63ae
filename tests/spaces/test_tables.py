"""Decision tables, against loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.spaces.tables import build_table
from sparsity_search.testing.problems import toy_layout

LAYOUT = toy_layout(24, 30, 18, cost=(1, 2, 5))
GROUPS = [(0, 2), (1,)]
ROWS = [np.array([[3, 1], [0, 0], [8, 0], [24, 18]]), np.array([[30], [5], [0], [7]])]


def test_rows_are_sorted_by_what_they_count_for() -> None:
    table = build_table(LAYOUT, GROUPS, ROWS)
    # [3, 1] and [8, 0] remove 8 weights: the first stays
    assert [rows.tolist() for rows in table.rows] == [
        [[0, 0], [3, 1], [24, 18]],
        [[0], [5], [7], [30]],
    ]
    assert [saved.tolist() for saved in table.saved] == [[0, 8, 114], [0, 10, 14, 60]]
    assert table.top.tolist() == [2, 3]
    assert table.range == (0, 174)


def test_rows_with_prices() -> None:
    saved = [np.array([5, 0, 9, 9]), np.array([4, 2, 0, 2])]
    table = build_table(LAYOUT, GROUPS, ROWS, saved)
    assert [each.tolist() for each in table.saved] == [[0, 5, 9], [0, 2, 4]]
    assert table.rows[0].tolist() == [[0, 0], [3, 1], [8, 0]]
    assert table.rows[1].tolist() == [[0], [5], [30]]


def test_levels() -> None:
    table = build_table(LAYOUT, GROUPS, ROWS)
    assert table.at([1, 2]).tolist() == [3, 7, 1]
    assert table.total([1, 2]) == 8 + 14


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(0, 8), min_size=4, max_size=4),
    st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_around(sizes: list[int], centre: list[int], reach: list[int]) -> None:
    layout = toy_layout(*[10] * len(sizes))
    groups = [(i,) for i in range(len(sizes))]
    rows = [np.arange(n)[:, None] for n in sizes]
    table = build_table(layout, groups, rows)
    at = np.minimum(centre[: len(sizes)], table.top)
    part, place = table.around(at, np.array(reach[: len(sizes)]))
    for g, (level, far) in enumerate(zip(at, reach, strict=False)):
        near = [k for k in range(sizes[g]) if abs(k - level) <= far]
        assert part.rows[g][:, 0].tolist() == part.saved[g].tolist() == near
        assert near[place[g]] == level
