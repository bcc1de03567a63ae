from __future__ import annotations

import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.dass import DassPruner
from sparsity_search.pruners.drop import DropPruner
from sparsity_search.pruners.refit import RefitPruner
from sparsity_search.pruners.ria import RiaPruner
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.patterns import groups_of, pattern_of, with_pattern
from sparsity_search.registry import PRUNERS
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
