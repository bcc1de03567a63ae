from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsity_search.pruners.ria.permutation import (
    METHODS,
    assign_columns,
    build_serpentine,
    deal_columns,
    find_channel_order,
    sum_retained,
)
from sparsity_search.testing.pruner import draw_correlated_inputs, draw_gaussian


def scores(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Scores whose columns differ in size, neighbours alike."""
    norms = draw_correlated_inputs(50, columns, seed=seed + 1).norm(dim=0)
    return draw_gaussian(rows, columns, seed=seed).abs() * norms


def naive_retained(score: Tensor, keep: int, group: int) -> float:
    return sum(
        value
        for row in score.tolist()
        for start in range(0, len(row), group)
        for value in sorted(row[start : start + group])[group - keep :]
    )


def naive_best(score: Tensor, order: list[int], position: int, keep: int, group: int) -> float:
    """The most retained by any permutation of the columns at one position."""
    best = 0.0
    for moved in permutations(order[position::group]):
        candidate = list(order)
        candidate[position::group] = moved
        best = max(best, naive_retained(score[:, candidate], keep, group))
    return best


@pytest.mark.parametrize(("keep", "group"), [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (2, 3)])
def test_retained(keep: int, group: int) -> None:
    score = scores(5, 12)
    assert sum_retained(score, keep, group) == pytest.approx(naive_retained(score, keep, group))


def test_serpentine_by_hand() -> None:
    score = torch.tensor([[5.0, 1.0, 8.0, 2.0, 6.0, 3.0, 7.0, 4.0]])
    order = build_serpentine(score, 4)
    assert score[0, order].tolist() == [1, 4, 5, 8, 2, 3, 6, 7]
    assert build_serpentine(score, 2).tolist() == [1, 2, 3, 6, 5, 4, 7, 0]
    assert build_serpentine(score, 1).tolist() == [1, 3, 5, 7, 0, 4, 6, 2]


def test_serpentine_sums_whole_columns() -> None:
    scores = torch.tensor([[9.0, 1.0, 5.0, 0.0], [0.0, 9.0, 7.0, 0.0]])
    assert build_serpentine(scores, 2).tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("keep", "group"), [(1, 2), (2, 4), (1, 3), (3, 4)])
def test_one_position_is_assigned_at_its_best(keep: int, group: int, seed: int) -> None:
    score = scores(3, 4 * group, seed).double()
    slots = torch.arange(4 * group).view(4, group)
    for position in range(group):
        best = naive_best(score, slots.flatten().tolist(), position, keep, group)
        slots[:, position] = deal_columns(score, slots, position, keep)
        assert naive_retained(score[:, slots.flatten()], keep, group) == pytest.approx(best)
    assert (
        assign_columns(score, torch.arange(4 * group), keep, group).tolist()
        == slots.flatten().tolist()
    )


@pytest.mark.parametrize("seed", range(6))
def test_all_orders_of_six_columns(seed: int) -> None:
    score = scores(4, 6, seed)
    values = [naive_retained(score[:, list(o)], 1, 2) for o in permutations(range(6))]
    found = [sum_retained(score[:, find_channel_order(score, 1, 2, m)], 1, 2) for m in METHODS]
    assert values[0] - 1e-6 <= found[0] <= found[1] + 1e-6 <= max(values) + 2e-6
    assert found[1] > 0.97 * max(values)


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 5),
    st.data(),
    st.integers(0, 99),
    st.booleans(),
)
def test_retained_score_never_falls(
    rows: int, groups: int, group: int, data: st.DataObject, seed: int, ties: bool
) -> None:
    keep = data.draw(st.integers(0, group))
    score = draw_gaussian(rows, groups * group, seed=seed).abs()
    score = score.round() if ties else score
    values = [sum_retained(score, keep, group)]
    for method in METHODS:
        order = find_channel_order(score, keep, group, method)
        assert order.sort().values.tolist() == list(range(groups * group))
        values.append(sum_retained(score[:, order], keep, group))
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(values))


def test_a_better_given_order_stays() -> None:
    score = torch.tensor([[9.0, 0.0, 1.0, 0.0], [0.0, 4.0, 0.0, 5.0]])
    assert sum_retained(score[:, build_serpentine(score, 2)], 1, 2) == 14
    assert find_channel_order(score, 1, 2, "heuristic").tolist() == [0, 1, 2, 3]
    assert sum_retained(score, 1, 2) == 19


def test_both_methods_gain_on_columns_of_unequal_size() -> None:
    score = scores(24, 64)
    values = [sum_retained(score, 2, 4)]
    values += [sum_retained(score[:, find_channel_order(score, 2, 4, m)], 2, 4) for m in METHODS]
    assert values[0] * 1.01 < values[1]
    assert values[1] * 1.005 < values[2]


@pytest.mark.parametrize("keep", [0, 4])
def test_nothing_to_choose(keep: int) -> None:
    start = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert assign_columns(scores(3, 8), start, keep, 4).tolist() == start.tolist()


def test_arguments_are_not_modified() -> None:
    score, start = scores(3, 8), torch.arange(8)
    before = score.clone()
    assign_columns(score, start, 2, 4)
    find_channel_order(score, 2, 4, "assignment")
    assert torch.equal(score, before)
    assert start.tolist() == list(range(8))
