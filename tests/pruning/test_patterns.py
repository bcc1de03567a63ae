from __future__ import annotations

import pytest
import torch

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.dass import DassPruner
from sparsity_search.pruners.drop import DropPruner
from sparsity_search.pruners.refit import RefitPruner
from sparsity_search.pruners.ria import RiaPruner
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.patterns import check_zeros, groups_of, pattern_of, with_pattern
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.models import tiny_llama
from tests.helpers.names import OF_WEIGHTS

#: Those whose stored matrix has its groups elsewhere.
OTHERWISE = {"dass"}


@pytest.mark.parametrize("name", sorted(set(OF_WEIGHTS) - OTHERWISE))
def test_every_pruner_of_weights_can_have_another_pattern(name: str) -> None:
    pruner = PRUNERS.create(name)
    for pattern in ("2:4", "4:8"):
        assert pattern_of(with_pattern(pruner, pattern)) == Pattern.parse(pattern)
    assert with_pattern(pruner, "") is pruner
    assert pruner == PRUNERS.create(name)


def test_only_patterns_of_groups_are_groups() -> None:
    assert groups_of(WandaPruner()) is None
    assert groups_of(DropPruner()) is None
    assert groups_of(RefitPruner(mask=WandaPruner(pattern="*:8"))) == Pattern("group", 8)


def test_only_the_pattern_changes() -> None:
    found = with_pattern(SparseGPTPruner(damping=0.3, pattern="4:8"), "2:4")
    assert found == SparseGPTPruner(damping=0.3, pattern="2:4")


def test_a_mask_source_has_the_pattern() -> None:
    assert with_pattern(SparseGPTPruner(mask=RiaPruner(exponent=0.7)), "2:4") == SparseGPTPruner(
        mask=RiaPruner(exponent=0.7, pattern="2:4")
    )
    nested = RefitPruner(mask=SparseGPTPruner(mask=WandaPruner()))
    assert with_pattern(nested, "2:4") == RefitPruner(
        mask=SparseGPTPruner(mask=WandaPruner(pattern="2:4"))
    )


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (DropPruner(), "drop has no patterns"),
        (DassPruner(), "dass cannot prune 2:4 as sparse kernels need it"),
        (RefitPruner(mask=DassPruner()), "dass cannot prune 2:4"),
        (RiaPruner(permutation="heuristic", pattern="*:4"), "ria cannot prune 2:4"),
    ],
)
def test_pruners_that_cannot(pruner: Pruner, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_pattern(pruner, "2:4")


@pytest.mark.parametrize("pattern", ["row", "2:4:8", "5:4"])
def test_patterns_are_checked_by_the_pruner(pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern must be"):
        with_pattern(SparseGPTPruner(), pattern) if pattern != "row" else with_pattern(
            WandaPruner(), "column"
        )


def test_zeros_of_the_model_may_exclude_a_pattern() -> None:
    def check(*kept: int, pattern: str = "2:4") -> None:
        """Check a model whose first weight keeps these weights of every four inputs."""
        model = tiny_llama(layers=1)
        weight = model.model.layers[0].self_attn.q_proj.weight.data
        mask = torch.zeros(4)
        mask[list(kept)] = 1
        weight *= mask.repeat(weight.shape[1] // 4)
        if not kept:  # half of each row, but not of each group
            weight[:, :16] = 1
        check_zeros(PrunableModel(model), WandaPruner(pattern=pattern))

    check(0, 1, 2)
    check(1, 3)  # as wanted already
    check(1, pattern="1:4")
    check(pattern="1:4")  # half of the weights may become a quarter
    with pytest.raises(InfeasibleBudgetError, match=r"q_proj has 512 zeros of 1024 .* not 2:4"):
        check()
    with pytest.raises(InfeasibleBudgetError, match=r"768 zeros .* \(it makes 512\)"):
        check(2)
    check(2, pattern="layer")
