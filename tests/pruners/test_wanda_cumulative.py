from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruners.wanda_cumulative import WandaCumulativePruner
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian

ROWS, COLUMNS = 16, 40
SIZE = ROWS * COLUMNS
WEIGHT, INPUTS = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(50, COLUMNS)
COUNTS = range(0, SIZE + 1, 7)


def removed(weight: Tensor, count: int, inputs: Tensor = INPUTS, seed: int = 0) -> Tensor:
    known = build_evidence(inputs, Statistic.NORM)
    return WandaCumulativePruner().prune(weight, known, [count], seed=seed).at(weight, count) == 0


def by_alpha(weight: Tensor, inputs: Tensor, alpha: float) -> Tensor:
    """Of each row the longest run of least scores whose sum is at most alpha of the row's."""
    score = weight.double().abs() * inputs.double().square().mean(0).sqrt()
    gone = torch.zeros(weight.shape, dtype=torch.bool)
    for i, row in enumerate(score.tolist()):
        total, bound = 0.0, alpha * sum(row)
        for j in sorted(range(len(row)), key=row.__getitem__):
            total += row[j]
            if total > bound:
                break
            gone[i, j] = True
    return gone


@pytest.mark.parametrize("alpha", [0.001, 0.02, 0.1, 0.2, 0.4, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("seed", range(3))
def test_is_the_mask_of_some_alpha(alpha: float, seed: int) -> None:
    weight = draw_gaussian(ROWS, COLUMNS, seed=seed) * draw_gaussian(ROWS, 1, seed=seed + 9).exp()
    expected = by_alpha(weight, INPUTS, alpha)
    assert torch.equal(removed(weight, int(expected.sum())), expected)


def test_large_rows() -> None:
    weight, inputs = draw_gaussian(6, 1500), torch.ones(1, 1500)
    for alpha in (0.05, 0.5):
        expected = by_alpha(weight, inputs, alpha)
        assert torch.equal(removed(weight, int(expected.sum()), inputs), expected)


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 1.0, 4.0], [10.0, 3.0, 2.0, 5.0]])
    inputs = torch.tensor([[1.0, 1.0, 2.0, 1.0]])  # scores 1 2 2 4 and 10 3 4 5
    # Shares 1/9, 3/9 and 5/9 (the seed decides which), 1; and 1, 3/22, 7/22, 12/22.
    variants = WandaCumulativePruner().prune(
        weight, build_evidence(inputs, Statistic.NORM), range(1, 8), seed=0
    )
    order = [
        (variants.at(weight, n - 1) != variants.at(weight, n)).nonzero().tolist()[0]
        for n in range(2, 8)
    ]
    assert (variants.at(weight, 1) == 0).nonzero().tolist() == [[0, 0]]
    assert order[0] == [1, 1]
    assert order[1] == [1, 2]
    assert order[2][0] == 0
    assert order[3] == [1, 3]
    assert sorted([order[2], order[4]]) == [[0, 1], [0, 2]]
    assert order[5] == [0, 3]


def test_equal_scores_of_a_row_go_by_seed() -> None:
    weight, inputs = torch.ones(4, 6), torch.ones(1, 6)
    masks = [removed(weight, 8, inputs, seed) for seed in range(4)]
    assert all((mask.sum(1) == 2).all() for mask in masks)
    assert any(not torch.equal(mask, masks[0]) for mask in masks)


def test_size_of_rows_does_not_matter() -> None:
    scales = torch.tensor([2.0**k for k in range(-8, 8)])[:, None]
    known = build_evidence(INPUTS, Statistic.NORM)
    counts = range(0, SIZE - ROWS + 1, 7)  # after that the rows' largest are left
    codes = WandaCumulativePruner().prune(WEIGHT, known, counts, seed=0).codes
    assert torch.equal(
        WandaCumulativePruner().prune(WEIGHT * scales, known, counts, seed=0).codes, codes
    )
    layer = [WandaPruner(pattern="layer").prune(w, known, counts, seed=0).codes
             for w in (WEIGHT, WEIGHT * scales)]  # fmt: skip
    assert not torch.equal(*layer)


def test_shares_that_are_equal_in_float32() -> None:
    weight = torch.tensor([[1.0, 2.0**25], [0.5, 2.0**24 - 1]])  # 1/(2²⁵ + 1) and 1/(2²⁵ - 1)
    assert removed(weight, 1, torch.ones(1, 2)).tolist() == [[True, False], [False, False]]


def test_rows_with_outliers_lose_more() -> None:
    weight = WEIGHT.clone()
    weight[3, 5] = 1000
    gone = removed(weight, SIZE // 2).sum(1)
    assert gone[3] == COLUMNS - 1
    assert gone.sum() == SIZE // 2
    assert len(set(gone.tolist())) > 2


def test_the_largest_of_rows_go_last_by_score() -> None:
    score = WEIGHT.abs() * INPUTS.norm(dim=0)
    largest = score.max(dim=1).values
    for left in (1, 5, ROWS):
        kept = ~removed(WEIGHT, SIZE - left)
        assert kept.sum(1).max() == 1
        assert set(kept.any(1).nonzero().flatten().tolist()) == set(
            largest.argsort(descending=True)[:left].tolist()
        )


def test_zeros_go_first_then_dead_inputs() -> None:
    weight, inputs = WEIGHT.clone(), INPUTS.clone()
    weight[::3, 7:19] = 0
    weight[4] = 0
    inputs[:, [0, 11]] = 0
    zero = weight == 0
    dead = zero | (torch.arange(COLUMNS) % 11 == 0) & (torch.arange(COLUMNS) < 12)
    assert torch.equal(removed(weight, int(zero.sum()), inputs), zero)
    one_more = removed(weight, int(zero.sum()) + 1, inputs)
    assert (one_more & ~zero).sum() == 1
    assert (one_more & ~dead).sum() == 0
    assert torch.equal(removed(weight, int(dead.sum()), inputs), dead)


def test_groups_are_wandas() -> None:
    known, counts = build_evidence(INPUTS, Statistic.NORM), range(0, SIZE + 1, SIZE // 4)
    found = WandaCumulativePruner(pattern="*:4").prune(WEIGHT, known, counts, seed=2)
    wanda = WandaPruner(pattern="*:4").prune(WEIGHT, known, counts, seed=2)
    assert found.kind == "grouped"
    assert torch.equal(found.codes, wanda.codes)


@pytest.mark.parametrize("pattern", ["layer", "block", "column"])
def test_illegal_pattern(pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern must be"):
        WandaCumulativePruner(pattern=pattern)


def test_overflow_is_an_error() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        removed(torch.full((2, 4), 1e38), 3, torch.full((1, 4), 1e3))
