from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.spaces.choices import list_pattern_counts, step_counts, tie_counts
from sparsity_search.spaces.step_levels import share_equally
from sparsity_search.testing.problems import toy_layout

#: SmolLM2-135M: three key-value groups and 1,536 channels a block.
WIDTH = toy_layout(*(3, 1536) * 30, cost=(294_912, 1_728) * 30)


@pytest.mark.parametrize(
    ("pattern", "zeros", "counts"),
    [
        ("2:4", 0, (0, 12)),
        ("1:4", 0, (0, 18)),
        ("0:4", 0, (0, 24)),
        ("*:4", 0, (0, 6, 12, 18, 24)),
        ("*:8", 0, (0, 3, 6, 9, 12, 15, 18, 21, 24)),
        ("2:4", 5, (5, 12)),
        ("2:4", 12, (12,)),
        ("*:4", 5, (5, 6, 12, 18, 24)),
        ("*:4", 6, (6, 12, 18, 24)),
        ("*:4", 24, (24,)),
    ],
)
def test_counts_of_patterns(pattern: str, zeros: int, counts: tuple[int, ...]) -> None:
    assert list_pattern_counts(toy_layout(24, zeros=zeros), pattern) == (counts,)


@pytest.mark.parametrize("pattern", ["4:4", "5:4", "*:0", "0:0", "layer", "2:", "2:4 ", "-1:4"])
def test_not_a_pattern(pattern: str) -> None:
    with pytest.raises(ConfigError, match="N:M with N < M"):
        list_pattern_counts(toy_layout(24), pattern)


@pytest.mark.parametrize("layout", [toy_layout(8, 10), toy_layout(8, 8, cost=(1, 2))])
def test_no_whole_groups(layout: Layout) -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.k has .* no whole number of groups of 4"):
        list_pattern_counts(layout, "2:4")


def test_tied_units_share_a_sparsity() -> None:
    layout = toy_layout(8, 24, 16, zeros=1)
    rows = tie_counts(
        layout, Bounds.of(layout), [(0, 1), (2,)], list_pattern_counts(layout, "*:4")
    )
    assert rows[0].tolist() == [[1, 1], [1, 1], [2, 6], [4, 12], [6, 18], [8, 24]]
    assert rows[1].tolist() == [[1], [4], [8], [12], [16]]


def test_bounds_leave_some_choices_out() -> None:
    layout = toy_layout(8, 8)
    rows = tie_counts(
        layout, Bounds.of(layout, 0.2, 0.8), [(0,), (1,)], list_pattern_counts(layout, "*:4")
    )
    assert [row.ravel().tolist() for row in rows] == [[2, 4, 6]] * 2
    with pytest.raises(InfeasibleBudgetError, match=r"layers\.0\.q: none of its choices \[0, 4\]"):
        tie_counts(
            layout, Bounds.of(layout, 0.2, 0.4), [(0,), (1,)], list_pattern_counts(layout, "2:4")
        )


@pytest.mark.parametrize("choices", [((0, 4),), ((0, 4), ()), ((0, 4), (4, 0)), ((0, 4), (0, 0))])
def test_choices_increase_for_every_unit(choices: tuple[tuple[int, ...], ...]) -> None:
    layout = toy_layout(8, 8)
    with pytest.raises(ConfigError, match="increasing choices for every unit"):
        tie_counts(layout, Bounds.of(layout), [(0,), (1,)], choices)


def test_share_equally_waste_less_than_the_smallest() -> None:
    for target in (0.1, 0.25, 0.5, 0.9):
        counts = share_equally(WIDTH, Bounds.of(WIDTH), Budget(target))
        surplus = counts @ WIDTH.costs - Budget(target).n_removed(WIDTH)
        assert 0 <= surplus < 1_728
        share = np.abs(counts - target * WIDTH.counts)
        assert (share[::2] < 1).all()  # groups: the next whole number
        assert (share[1::2] / 1536 < 0.01).all()  # channels even that out


def test_levels_of_structures() -> None:
    layout = Layout(
        [
            Unit(name="attention", block=0, role="attention", count=3, cost=100),
            Unit(name="channels", block=0, role="feed_forward", count=50, cost=7),
        ]
    )
    bounds = Bounds.of(layout, upper=np.array([1.0, 0.9]))
    groups, channels = step_counts(layout, bounds, [(0,), (1,)], np.array([1, 20]), [28, 28])
    # several steps to a group: every number of groups; four channels a step, and the bounds
    assert set(groups.ravel()) == {0, 1, 2, 3}
    assert sorted(set(channels.ravel())) == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 45]
    (tied,) = step_counts(layout, bounds, [(0, 1)], np.array([1, 20]), [50])
    assert tied[0].tolist() == [1, 20]
    totals = np.sort(tied @ layout.costs)
    assert (totals[0], totals[-1]) == (0, 300 + 45 * 7)
    # channels make up for what whole groups miss: levels lie a step apart to half a channel
    inner = totals[(totals > 50) & (totals < 500)]
    assert np.abs((inner - 240) - np.round((inner - 240) / 50) * 50).max() <= 4
    assert ((tied >= bounds.lower) & (tied <= bounds.upper)).all()
