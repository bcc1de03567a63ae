from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import build_sort_keys, compute_removal_order
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.testing.pruner import build_evidence, draw_gaussian


def prune(weight: Tensor, count: int, seed: int = 0, scope: str = "layer") -> Tensor:
    inputs = build_evidence(weight, Statistic.NONE)
    variants = MagnitudePruner(pattern=scope).prune(weight, inputs, [count], seed=seed)
    return variants.at(weight, count)


def removed_one_by_one(weight: Tensor, scope: str) -> list[tuple[int, int]]:
    """The specification in plain Python: a sort by tuples, for weights without ties."""
    rows = weight.abs().tolist()

    def key(i: int, j: int) -> tuple[bool, int, float]:
        rank = sorted(rows[i]).index(rows[i][j]) if scope == "row" else 0
        return rows[i][j] > 0, rank, rows[i][j]

    places = [(i, j) for i in range(len(rows)) for j in range(len(rows[0]))]
    return sorted(places, key=lambda place: key(*place))


@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize("zeros", [0, 1, 4])
def test_order(scope: str, zeros: int) -> None:
    weight = draw_gaussian(5, 8)
    weight[1, :zeros] = 0
    order = compute_removal_order(weight.abs(), weight == 0, Pattern(scope), seed=0)
    expected = removed_one_by_one(weight, scope)
    assert [divmod(int(k), 8) for k in order[zeros:]] == expected[zeros:]
    assert sorted(int(k) for k in order[:zeros]) == [8 + j for j in range(zeros)]


def test_sort_keys() -> None:
    score = torch.tensor([0.0, -0.0, 1e-45, 3.0, 2.0, 2.0])
    first = torch.tensor([False, False, False, True, False, False])
    keys = build_sort_keys(score, first, torch.tensor([5, 4, 3, 2, 1, 0]))
    assert keys.argsort().tolist() == [3, 1, 0, 2, 5, 4]


@given(
    arrays("float32", array_shapes(min_dims=2, max_dims=2, max_side=6),
           elements=st.sampled_from([-0.0, 0.0, 1e-30, 0.5, -0.5, 2.0])),
    st.floats(0, 1),
    st.sampled_from(["layer", "row", "block"]),
)  # fmt: skip
def test_smallest_go_and_counts_are_exact(array: object, share: float, scope: str) -> None:
    weight = torch.as_tensor(array)
    count, existing = int(share * weight.numel()), int((weight == 0).sum())
    pruned = prune(weight, count, scope=scope)
    gone, kept = (pruned == 0) & (weight != 0), pruned != 0
    assert int((pruned == 0).sum()) == max(count, existing)
    for i in [...] if scope != "row" else range(len(weight)):
        if gone[i].any() and kept[i].any():
            assert weight[i][gone[i]].abs().max() <= weight[i][kept[i]].abs().min()


@given(st.integers(0, 5 * 7))
def test_row_scope_is_fair(count: int) -> None:
    zeros = (prune(draw_gaussian(5, 7), count, scope="row") == 0).sum(1)
    assert zeros.sum() == count
    assert zeros.max() - zeros.min() <= 1


@pytest.mark.parametrize("scope", ["layer", "row", "block"])
def test_masks_are_nested(scope: str) -> None:
    weight = draw_gaussian(6, 10).round()
    inputs = build_evidence(weight, Statistic.NONE)
    variants = MagnitudePruner(pattern=scope).prune(weight, inputs, range(61), seed=0)
    for count in range(60):
        less, more = variants.at(weight, count), variants.at(weight, count + 1)
        assert ((more == 0) | (less != 0)).all()


def test_seed_decides_between_equal_weights() -> None:
    weight = torch.cat([torch.full((4, 8), 0.5), torch.full((4, 8), 2.0)])
    first, again, other = (prune(weight, 16, seed) == 0 for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for removed in (first, other):
        assert int(removed[:4].sum()) == 16
        assert 0 < int(removed[:2].sum()) < 16  # neither the first nor the last of the ties


@pytest.mark.parametrize("pattern", ["column", "5:4", "2:0", "a:4", "2:4:8", "-1:4", ""])
def test_unknown_pattern(pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern must be layer, row, block, N:M"):
        MagnitudePruner(pattern=pattern)


def test_groups_keep_their_largest() -> None:
    weight = torch.tensor([[1.0, -9, 3, 2, 0.75, 0.5, -0.25, 7]])
    variants = MagnitudePruner(pattern="*:4").prune(
        weight, build_evidence(weight, Statistic.NONE), [2, 4], seed=0
    )
    assert variants.at(weight, 2).tolist() == [[0, -9, 3, 2, 0.75, 0.5, 0, 7]]
    assert variants.at(weight, 4).tolist() == [[0, -9, 3, 0, 0.75, 0, 0, 7]]


def test_blocks_lose_their_shares() -> None:
    weight = draw_gaussian(4, 300)
    weight[:, :128] *= 100  # a whole layer would spare this block
    pruned = prune(weight, 600, scope="block")
    assert [int((part == 0).sum()) for part in pruned.split(128, dim=1)] == [256, 256, 88]
    for part, before in zip(pruned.split(128, dim=1), weight.split(128, dim=1), strict=True):
        assert before[part == 0].abs().max() < before[part != 0].abs().min()
