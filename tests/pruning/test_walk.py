from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.pruning.walk import pruned_units, visit_units, walk_for
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.utils.random import derive_seed
from tests.helpers.sensitivity_oracles import pruned_weights


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "gblm"])
def test_units_are_pruned_alone(
    name: str, tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    pruner, before = PRUNERS.create(name), copy_weights(tiny_subject.model)
    tables = [(unit.count // 4, unit.count // 2) for unit in tiny_subject.layout]
    expected = pruned_weights(tiny_subject, tiny_tokens, pruner, tables, seed=3)
    found = pruned_units(tiny_subject, tiny_tokens, pruner, tables, seed=3)
    for pruned, (unit, levels) in zip(found, expected, strict=True):
        assert pruned.unit == unit
        assert torch.equal(pruned.dense, before[f"{unit.name}.weight"])
        for level, weight in zip(pruned.levels, levels, strict=True):
            assert torch.equal(level, weight)


def test_a_caller_may_write_while_it_takes_levels(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    tables = [(0, unit.count) for unit in tiny_subject.layout]
    for pruned in pruned_units(tiny_subject, tiny_tokens, PRUNERS.create("magnitude"), tables):
        for level, zeros in zip(pruned.levels, tables[0], strict=False):
            assert int((level == 0).sum()) == (pruned.unit.count if zeros else 0)
            pruned.view.write(torch.zeros_like(level))
        pruned.view.write(pruned.dense)


def test_statistics_beyond_those_of_the_pruner(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    tables = [(unit.count,) for unit in tiny_subject.layout]
    pruner = PRUNERS.create("magnitude")
    known = pruned_units(tiny_subject, tiny_tokens, pruner, tables, statistic=Statistic.HESSIAN)
    assert next(known).evidence.inputs.hessian().abs().sum() > 0


def test_no_counts_give_no_levels(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    tables = [()] * len(tiny_subject.layout)
    pruner = PRUNERS.create("wanda")
    for pruned in pruned_units(tiny_subject, tiny_tokens, pruner, tables):
        assert list(pruned.levels) == []


def test_mergers_are_refused(tiny_tokens: Tensor, tiny_subject: PrunableModel) -> None:
    with pytest.raises(ConfigError):
        next(pruned_units(tiny_subject, tiny_tokens, PRUNERS.create("laco"), []))


def test_ties_have_a_seed_for_each_unit(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner, seeds = PRUNERS.create("magnitude"), {}
    original = type(pruner).prune

    def prune(self, weight, evidence, counts, *, seed):  # type: ignore[no-untyped-def]
        seeds[name] = seed
        return original(self, weight, evidence, counts, seed=seed)

    monkeypatch.setattr(type(pruner), "prune", prune)
    for visit in walk_for(pruner, tiny_subject, tiny_tokens, rewritten=False):
        for reached in visit_units(tiny_subject, visit):
            name = reached.unit.name
            reached.prune(pruner, [1], 7)
    assert seeds == {u.name: derive_seed(7, "ties", u.name) for u in tiny_subject.layout}
    assert len(set(seeds.values())) == len(tiny_subject.layout)
