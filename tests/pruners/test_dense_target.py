"""Weights that aim at the dense model's outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.bases.update import aim_at_dense
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.pruning.walk import walk_for
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.models import tiny_llama

PRUNERS_WITH_TARGET = ("sparsegpt", "admm", "alps", "refit", "group_obs")


def gather(inputs: Tensor) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1], Statistic.HESSIAN)
    statistics.add(inputs)
    return statistics


def test_is_the_least_squares_solution() -> None:
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=source)
    dense = torch.randn(300, 8, generator=source)
    pruned = dense @ torch.randn(8, 8, generator=source) + torch.randn(300, 8, generator=source)
    found = aim_at_dense(weight, gather(pruned), dense.T @ pruned / 300)
    ridge = 0.01 * float((pruned**2).mean())
    # ordinary least squares with rows that pull to the weight itself
    rows = torch.cat([pruned, (300 * ridge) ** 0.5 * torch.eye(8)]).double()
    wanted = torch.cat([dense @ weight.T, (300 * ridge) ** 0.5 * weight.T]).double()
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_equal_inputs_change_nothing() -> None:
    weight, inputs = torch.randn(5, 8), torch.randn(300, 8)
    inputs[:, 3] = 0
    weight[0, 0] = 0
    found = aim_at_dense(weight, gather(inputs), gather(inputs).hessian())
    torch.testing.assert_close(found, weight, rtol=1e-5, atol=1e-6)
    assert found[0, 0] == 0


def test_zeros_and_dead_inputs_stay() -> None:
    weight, dense = torch.randn(5, 8), torch.randn(300, 8)
    pruned = dense + torch.randn(300, 8)
    pruned[:, 2] = 0
    weight[1, 4] = 0
    found = aim_at_dense(weight, gather(pruned), dense.T @ pruned / 300)
    assert found[1, 4] == 0
    assert torch.equal(found[:, 2], weight[:, 2])
    assert not torch.allclose(found[:, 5], weight[:, 5])


def collect(subject: PrunableModel, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return the inputs of layers in one pass of the whole model, ``(tokens, inputs)``."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> object:
        return lambda _, args: found.update({name: args[0].flatten(0, -2)})

    handles = [
        subject.views[name].module.register_forward_pre_hook(hook(name))  # type: ignore[arg-type]
        for name in names
    ]
    with torch.no_grad():
        subject.model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return found


def test_cross_products_are_those_of_whole_passes(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    dense = PrunableModel(copy.deepcopy(subject.model))
    pruner = PRUNERS.create("sparsegpt", target="dense")
    tokens = tiny_tokens[:5]
    for visit in walk_for(pruner, subject, tokens, rewritten=True, dense_inputs=True):
        names = [unit.name for unit in visit.units]
        before, now = (collect(each, tokens, names) for each in (dense, subject))
        for name in names:
            cross = visit.evidence[name].cross
            assert cross is not None
            expected = before[name].double().T @ now[name].double() / len(now[name])
            torch.testing.assert_close(cross.double(), expected, rtol=1e-4, atol=1e-5)
        for name in names:  # rewrite the block
            view = subject.views[name]
            view.write(view.read() * 0.9)


@pytest.mark.parametrize("name", PRUNERS_WITH_TARGET)
def test_pruned_models_come_nearer_to_the_dense_one(name: str, tiny_tokens: Tensor) -> None:
    model, moved = tiny_llama(layers=4), {}
    with torch.no_grad():
        wanted = model.model(input_ids=tiny_tokens).last_hidden_state
    for target in ("pruned", "dense"):
        subject = PrunableModel(copy.deepcopy(model))
        pruner = PRUNERS.create(name, target=target)
        prune_sequentially(subject, Budget(0.5).uniform(subject.layout), pruner, tiny_tokens)
        with torch.no_grad():
            found = subject.model.model(input_ids=tiny_tokens).last_hidden_state
        moved[target] = float((found - wanted).square().mean())
    assert moved["dense"] < moved["pruned"]
