from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.variants import Variants
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.dass import DassPruner
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing import pruner as contract
from sparsity_search.testing.pruner import (
    assert_exact,
    draw_correlated_inputs,
    draw_gaussian,
    gather_statistics,
)

ROWS, COLUMNS = 12, 16
SIZE = ROWS * COLUMNS
WEIGHT = draw_gaussian(ROWS, COLUMNS)
INPUTS, NEXT = draw_correlated_inputs(50, COLUMNS), draw_correlated_inputs(50, ROWS, seed=8)
COUNTS = range(0, SIZE + 1, 7)


def gate(inputs: Tensor = INPUTS, following: Tensor = NEXT) -> Evidence:
    return Evidence(
        inputs=gather_statistics(inputs, Statistic.NORM),
        following=gather_statistics(following, Statistic.NORM),
    )


DOWN = Evidence(inputs=gather_statistics(INPUTS, Statistic.NORM))


def removed(pruner: Pruner, count: int, known: Evidence) -> Tensor:
    return pruner.prune(WEIGHT, known, [count], seed=0).at(WEIGHT, count) == 0


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("each", [1, 5, 11])
def test_columns_lose_their_least(each: int, exponent: float) -> None:
    norms = NEXT.double().square().sum(0).sqrt()
    expected = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    for j in range(COLUMNS):
        column = [abs(float(WEIGHT[i, j])) * float(norms[i]) ** exponent for i in range(ROWS)]
        expected[sorted(range(ROWS), key=column.__getitem__)[:each], j] = True
    assert torch.equal(removed(DassPruner(exponent=exponent), each * COLUMNS, gate()), expected)


def test_by_hand() -> None:
    weight = torch.tensor([[3.0, 1.0, 2.5], [1.0, 1.0, 1.5]])
    known = gate(torch.ones(1, 3), torch.tensor([[1.0, 4.0]]))  # scores 3 1 2.5 and 2 2 3
    variants = DassPruner().prune(weight, known, [1, 2, 3, 4], seed=0)
    assert variants.at(weight, 1).tolist() == [[3, 0, 2.5], [1, 1, 1.5]]
    assert variants.at(weight, 2).tolist() == [[3, 0, 2.5], [0, 1, 1.5]]
    assert variants.at(weight, 3).tolist() == [[3, 0, 0], [0, 1, 1.5]]
    assert variants.at(weight, 4).tolist() == [[3, 0, 0], [0, 0, 1.5]]


def test_rows_do_not_compete_within() -> None:
    by_rows = removed(MagnitudePruner(pattern="row"), 5 * ROWS, gate())
    assert not torch.equal(removed(DassPruner(), 5 * ROWS, gate()), by_rows)
    # The factor of a row cannot change the order within it.
    score = DassPruner().score(WEIGHT, gate())
    assert torch.equal(score.argsort(dim=1), WEIGHT.abs().argsort(dim=1))


def test_only_what_follows_matters() -> None:
    codes = DassPruner().prune(WEIGHT, gate(), COUNTS, seed=0).codes
    for same in (gate(inputs=INPUTS.flip(1)), gate(following=NEXT * 16)):
        assert torch.equal(DassPruner().prune(WEIGHT, same, COUNTS, seed=0).codes, codes)
    other = DassPruner().prune(WEIGHT, gate(following=NEXT.flip(1)), COUNTS, seed=0).codes
    assert not torch.equal(other, codes)


def test_a_silent_neuron_goes_first() -> None:
    following = NEXT.clone()
    following[:, 7] = 0
    gone = removed(DassPruner(), COLUMNS, gate(following=following))
    assert gone[7].all()
    assert int(gone.sum()) == COLUMNS


@pytest.mark.parametrize("pattern", ["row", "layer", "*:4"])
def test_is_wanda_for_other_units(pattern: str) -> None:
    counts = range(0, SIZE + 1, SIZE // 4)
    found = DassPruner(pattern=pattern).prune(WEIGHT, DOWN, counts, seed=3)
    wanda = WandaPruner(pattern=pattern).prune(WEIGHT, DOWN, counts, seed=3)
    assert torch.equal(found.codes, wanda.codes)


def test_the_layer_competes_as_a_whole() -> None:
    score = WEIGHT.abs() * NEXT.norm(dim=0).sqrt()[:, None]
    least = score.flatten().argsort()[:70]
    found = removed(DassPruner(pattern="layer"), 70, gate()).flatten().nonzero().flatten()
    assert set(found.tolist()) == set(least.tolist())


def test_groups_run_along_outputs() -> None:
    pruner = DassPruner(pattern="2:4")
    found = removed(pruner, SIZE // 2, gate())
    score = pruner.score(WEIGHT, gate()).T.reshape(-1, 4)
    assert torch.equal(found.T.reshape(-1, 4), score.argsort(1).argsort(1) < 2)
    assert not (found.view(-1, 4).sum(1) == 2).all()
    with pytest.raises(ConfigError, match="12 inputs are no whole number of groups of 8"):
        DassPruner(pattern="4:8").prune(WEIGHT, gate(), [SIZE // 2], seed=0)


def test_codes_can_be_stored() -> None:
    assert DassPruner().prune(WEIGHT, gate(), COUNTS, seed=0).codes.is_contiguous()


def test_bad_statistics_of_what_follows() -> None:
    following = NEXT.clone()
    following[3, 4] = float("nan")
    with pytest.raises(NumericalError):
        DassPruner().prune(WEIGHT, gate(following=following), [3], seed=0)


@pytest.mark.parametrize("exponent", [-1.0, float("nan"), float("inf")])
def test_illegal_exponent(exponent: float) -> None:
    with pytest.raises(ConfigError, match="exponent"):
        DassPruner(exponent=exponent)


class TestGate(contract.PrunerContract):
    """The contract holds where something follows too; groups are those of outputs."""

    @pytest.fixture
    def pruner(self) -> Pruner:
        return DassPruner()

    def run(
        self,
        pruner: Pruner,
        weight: Tensor | None = None,
        inputs: Tensor | None = None,
        counts: Sequence[int] = contract.COUNTS,
        seed: int = 0,
    ) -> Variants:
        weight = draw_gaussian(contract.ROWS, contract.COLUMNS) if weight is None else weight
        inputs = draw_correlated_inputs(300, contract.COLUMNS) if inputs is None else inputs
        known = gate(inputs, inputs[:, : len(weight)])
        return pruner.prune(weight, known, counts, seed=seed)

    @pytest.mark.parametrize("group", [4, 8])
    def test_groups(self, pruner: Pruner, group: int) -> None:
        weight = (draw_gaussian(contract.ROWS, contract.COLUMNS) * 3).trunc()
        weight[:, 2] = 0
        existing, n_groups = int((weight == 0).sum()), contract.SIZE // group
        counts = sorted({0, existing, *range(n_groups, contract.SIZE + 1, n_groups)})
        variants = self.run(
            contract.set_group_pattern(pruner, f"*:{group}"), weight, counts=counts
        )
        assert_exact(variants, weight, counts)
        for count in counts:
            if count > existing:
                zeros = (variants.at(weight, count).T.reshape(-1, group) == 0).sum(1)
                assert (zeros == count // n_groups).all()


@pytest.mark.parametrize("update", ["sparsegpt", "admm", "group_obs", "refit"])
def test_updates_of_its_masks_need_what_it_needs(update: str) -> None:
    assert PRUNERS.create(update, mask="dass").needs_following
    assert not PRUNERS.create(update, mask="wanda").needs_following
