from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks
from sparsity_search.pruners.bases.select import select_smallest, select_smallest_of_groups


def make_keys(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    """Return distinct keys: of scores all over the place, near one another, equal, or few."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator)
    if kind == "wide":
        scores = torch.exp(60 * scores - 30)
    elif kind == "narrow":
        scores = 1 + 1e-6 * scores
    elif kind == "equal":
        scores = torch.ones(rows, columns)
    elif kind == "rounded":
        scores = (4 * scores).round()
    first = torch.rand(rows, columns, generator=generator) < 0.2
    return build_sort_keys(scores, first, draw_tie_breaks(scores.shape, seed, scores.device))


kinds = st.sampled_from(["wide", "narrow", "equal", "rounded"])


@given(kinds, st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 99))
def test_the_smallest_keys_are_those_that_a_sort_has_first(
    kind: str, rows: int, columns: int, share: float, seed: int
) -> None:
    keys = make_keys(kind, rows, columns, seed)
    number = round(share * keys.numel())
    chosen = select_smallest(keys, number)
    assert sorted(keys[chosen].tolist()) == sorted(keys.flatten().tolist())[:number]


@pytest.mark.parametrize("left_out", [1, 40])
def test_keys_that_wait_for_all_others_are_not_chosen(left_out: int) -> None:
    keys = make_keys("wide", 8, 16, 0)
    keys.view(-1)[:left_out] = torch.iinfo(torch.int64).max
    chosen = select_smallest(keys, keys.numel() - left_out)
    assert not chosen.view(-1)[:left_out].any()
    assert chosen.view(-1)[left_out:].all()


@given(kinds, st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_each_group_loses_its_smallest_keys(
    kind: str, rows: int, groups: int, size: int, seed: int
) -> None:
    keys = make_keys(kind, rows, groups * size, seed)
    for number in range(size + 1):
        chosen = select_smallest_of_groups(keys, size, number)
        for row, mask in zip(keys.view(-1, size), chosen.view(-1, size), strict=True):
            assert sorted(row[mask].tolist()) == sorted(row.tolist())[:number]
