from __future__ import annotations

import torch
from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.pruners.wanda_sp import WandaSPPruner
from sparsity_search.testing.pruner import draw_correlated_inputs, draw_gaussian, gather_statistics

SHAPE = StructureLayout(count=6, inner=3, width=7)
WEIGHT, INPUTS = draw_gaussian(5, 6 * 7 + 1), draw_correlated_inputs(60, 18)


def order(weight: Tensor, inputs: Tensor, shape: StructureLayout = SHAPE) -> list[int]:
    evidence = Evidence(inputs=gather_statistics(inputs, Statistic.NORM), structures=shape)
    variants = WandaSPPruner().prune(weight, evidence, range(shape.count + 1), seed=0)
    assert variants.consumers is None
    assert variants.biases is None
    return variants.removed.sum(0).argsort(descending=True).tolist()


def test_by_hand() -> None:
    # mean |W| of the columns 2, 3 | 1, 5; rms of the inputs 3, 1 | 2, 1: sums 9 and 7
    weight = torch.tensor([[1.0, -4.0, 9.0, 1.0, 0.0, 9.0, 0.0], [-3, 2, 9, -1, 10, 9, 0]])
    inputs = torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    assert order(weight, inputs, StructureLayout(count=2, inner=2, width=3)) == [1, 0]
    assert order(weight, torch.ones(1, 4), StructureLayout(count=2, inner=2, width=3)) == [0, 1]


def test_sums_over_the_inputs() -> None:
    columns = SHAPE.consumer(WEIGHT).double().abs().mean(0) * INPUTS.double().norm(dim=0)
    expected = [float(columns[3 * s : 3 * s + 3].sum()) for s in range(6)]
    assert order(WEIGHT, INPUTS) == sorted(range(6), key=lambda s: expected[s])


def test_makers_and_signs_do_not_matter() -> None:
    other = -WEIGHT
    SHAPE.bodies(other)[:, :, 3:] = draw_gaussian(5, 6, 4, seed=5) * 10
    SHAPE.bias(other)[:] = 100
    assert order(other, INPUTS) == order(WEIGHT, INPUTS)


def test_structures_without_input_go_first() -> None:
    inputs = INPUTS.clone()
    inputs[:, 9:12] = 0
    assert order(WEIGHT, inputs)[0] == 3
