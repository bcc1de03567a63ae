from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian

ROWS, COLUMNS = 6, 20
WEIGHT, INPUTS = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(50, COLUMNS)
COUNTS = range(0, ROWS * COLUMNS + 1, 7)


def codes(inputs: Evidence, pruner: WandaPruner | MagnitudePruner | None = None) -> Tensor:
    return (pruner or WandaPruner()).prune(WEIGHT, inputs, COUNTS, seed=0).codes


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0], [0.1, -0.2, 9.0]])
    inputs = build_evidence(
        torch.tensor([[9.0, 1.0, 2.0]]), Statistic.NORM
    )  # scores 9 3 4, .9 .2 18
    variants = WandaPruner().prune(weight, inputs, [1, 2, 3, 4], seed=0)
    assert variants.at(weight, 1).tolist() == [[1, -3, 2], [pytest.approx(0.1), 0, 9]]
    assert variants.at(weight, 2).tolist() == [[1, 0, 2], [pytest.approx(0.1), 0, 9]]
    assert variants.at(weight, 3).tolist() == [[1, 0, 2], [0, 0, 9]]
    assert variants.at(weight, 4).tolist() == [[1, 0, 0], [0, 0, 9]]


@pytest.mark.parametrize("per_row", [1, 10, 19])
def test_rows_lose_their_least(per_row: int) -> None:
    variants = WandaPruner().prune(
        WEIGHT, build_evidence(INPUTS, Statistic.NORM), [per_row * ROWS], seed=0
    )
    removed = variants.at(WEIGHT, per_row * ROWS) == 0
    score = WEIGHT.abs() * INPUTS.norm(dim=0)
    expected = torch.zeros_like(removed).scatter(1, score.argsort(dim=1)[:, :per_row], True)
    assert torch.equal(removed, expected)


@pytest.mark.parametrize("pattern", ["layer", "row"])
def test_is_magnitude_for_equal_norms(pattern: str) -> None:
    ones = build_evidence(torch.ones(4, COLUMNS), Statistic.NORM)
    assert torch.equal(
        codes(ones, WandaPruner(pattern=pattern)), codes(ones, MagnitudePruner(pattern=pattern))
    )
    uneven = build_evidence(INPUTS, Statistic.NORM)
    assert not torch.equal(
        codes(uneven, WandaPruner(pattern=pattern)),
        codes(uneven, MagnitudePruner(pattern=pattern)),
    )


def test_only_norms_matter() -> None:
    expected = codes(build_evidence(INPUTS, Statistic.NORM))
    split = build_evidence(INPUTS[:13], Statistic.NORM)
    split.inputs.add(INPUTS[13:])
    for same in (
        split,
        build_evidence(INPUTS * 1024, Statistic.NORM),
        build_evidence(INPUTS, Statistic.HESSIAN),
    ):
        assert torch.equal(codes(same), expected)


def test_dead_inputs_go_first() -> None:
    inputs = INPUTS.clone()
    inputs[:, [3, 11]] = 0
    variants = WandaPruner().prune(
        WEIGHT, build_evidence(inputs, Statistic.NORM), [2 * ROWS], seed=0
    )
    assert (variants.at(WEIGHT, 2 * ROWS) == 0).any(0).nonzero().flatten().tolist() == [3, 11]
