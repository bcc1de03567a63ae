from __future__ import annotations

import torch
from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruners.magnitude_sp import MagnitudeSPPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.pruner import draw_gaussian


def order(weight: Tensor, shape: StructureLayout) -> list[int]:
    evidence = Evidence(inputs=InputStatistics(0, Statistic.NONE), structures=shape)
    variants = MagnitudeSPPruner().prune(weight, evidence, range(shape.count + 1), seed=0)
    return variants.removed.sum(0).argsort(descending=True).tolist()


def test_by_hand() -> None:
    # column norms 3 and 4, or 6 and ½: sums 7 and 6½, but the norm of the first is less
    first = [[3.0, 0.0, 9.0], [0.0, 4.0, 9.0]]
    second = [[0.0, 0.5, 0.1], [-6.0, 0.0, 0.1]]
    weight = torch.cat([torch.tensor(first), torch.tensor(second), torch.zeros(2, 1)], dim=1)
    assert order(weight, StructureLayout(count=2, inner=2, width=3)) == [1, 0]


def test_sums_of_column_norms() -> None:
    shape = StructureLayout(count=9, inner=3, width=8)
    weight = draw_gaussian(6, 9 * 8 + 1) * draw_gaussian(9 * 8 + 1, seed=2).exp()
    expected = [
        sum(float(shape.bodies(weight)[:, s, j].double().square().sum() ** 0.5) for j in range(3))
        for s in range(9)
    ]
    found = order(weight, shape)
    assert found == sorted(range(9), key=lambda s: expected[s])
    shape.bodies(weight)[:, :, 3:] *= draw_gaussian(9, 1, seed=3).exp()  # makers do not matter
    assert order(weight, shape) == found


def test_reads_no_text(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="width")

    def runs(*_: object) -> None:
        raise AssertionError("the model ran")

    for block in subject.blocks:
        block.register_forward_pre_hook(runs)
    profile = from_counts(subject.layout, [unit.count // 2 for unit in subject.layout])
    prune_sequentially(subject, profile, MagnitudeSPPruner(), tiny_tokens)
    assert subject.zeros() == profile
