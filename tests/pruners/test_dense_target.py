"""Weights that aim at the dense model's outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.bases.update import UpdatePruner, compute_dense_step
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import FAMILIES

AIMING = [name for name, kind in PRUNERS.classes().items() if issubclass(kind, UpdatePruner)]


def gather(inputs: Tensor, dense: Tensor | None = None) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1], Statistic.HESSIAN)
    statistics.add(inputs, dense)
    return statistics


def step_of(weight: Tensor, pruned: Tensor, dense: Tensor) -> Tensor:
    found = compute_dense_step(weight, gather(pruned, dense), 0.01)
    assert found is not None
    return found


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight, the dense model's inputs and the pruned model's."""
    source = torch.Generator().manual_seed(seed)
    weight, dense = torch.randn(5, 8, generator=source), torch.randn(300, 8, generator=source)
    mixed = dense @ torch.randn(8, 8, generator=source)
    return weight, dense, mixed + torch.randn(300, 8, generator=source)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_is_the_least_squares_solution(share: float) -> None:
    """Ordinary least squares of both targets, with rows that pull to the weight itself."""
    weight, dense, pruned = draw()
    step = step_of(weight, pruned, dense)
    ridge = (300 * 0.01 * float((pruned**2).mean())) ** 0.5
    ways = ((share, pruned, dense), (1 - share, pruned, pruned), (1.0, ridge * torch.eye(8), None))
    rows = torch.cat([scale**0.5 * read for scale, read, _ in ways]).double()
    wanted = [scale**0.5 * (read if aim is None else aim) @ weight.T for scale, read, aim in ways]
    expected = torch.linalg.lstsq(rows, torch.cat(wanted).double()).solution.T
    found = weight + share * step
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_equal_inputs_change_nothing() -> None:
    weight, inputs, _ = draw()
    inputs[:, 3] = 0
    found = step_of(weight, inputs, inputs)
    torch.testing.assert_close(found, torch.zeros(5, 8), rtol=0, atol=1e-6)


def test_zeros_and_dead_inputs_stay() -> None:
    weight, dense, pruned = draw()
    pruned[:, 2] = 0
    weight[1, 4] = 0
    found = step_of(weight, pruned, dense)
    assert found[1, 4] == 0
    assert not found[:, 2].any()
    assert found[:, 5].all()


def collect(subject: PrunableModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return all inputs of the units in passes of the whole model, ``(tokens, inputs)``."""
    found: dict[str, list[Tensor]] = {name: [] for name in subject.views}
    handles = [
        view.module.register_forward_pre_hook(
            lambda _, args, name=name: found[name].append(args[0].flatten(0, -2))
        )
        for name, view in subject.views.items()
    ]
    with torch.inference_mode():
        for row in tokens:
            subject.model(input_ids=row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_products_are_those_of_whole_passes(family: str, tiny_tokens: Tensor) -> None:
    """The dense model's inputs, and those after all that was rewritten before."""
    subject = PrunableModel(FAMILIES[family]())
    dense, seen = collect(subject, tiny_tokens), []
    for visit in walk(
        *(subject, tiny_tokens, Statistic.HESSIAN),
        rewritten=True,
        dense_inputs=True,
        refresh="layer",
    ):
        now = collect(subject, tiny_tokens)
        for unit in visit.units:
            cross = visit.evidence[unit.name].inputs.cross()
            assert cross is not None
            expected = dense[unit.name].double().T @ now[unit.name].double() / tiny_tokens.numel()
            torch.testing.assert_close(cross.double(), expected, rtol=1e-4, atol=1e-5)
            seen.append(unit.name)
        for unit in visit.units:
            view = subject.views[unit.name]
            view.write(view.read() * 0.9)
    assert sorted(seen) == sorted(subject.views)


@pytest.mark.parametrize(
    ("rewritten", "refresh"), [(True, "block"), (True, "sublayer"), (False, "layer")]
)
def test_what_several_layers_lose_is_not_made_up_for_twice(
    rewritten: bool, refresh: str, tiny_tokens: Tensor
) -> None:
    subject = PrunableModel(tiny_llama())
    visits = walk(
        *(subject, tiny_tokens, Statistic.HESSIAN),
        rewritten=rewritten,
        dense_inputs=True,
        refresh=refresh,  # type: ignore[arg-type]
    )
    assert all(
        found.inputs.cross() is None for visit in visits for found in visit.evidence.values()
    )


@pytest.mark.parametrize("name", AIMING)
def test_pruned_models_come_nearer_to_the_dense_one(name: str, tiny_tokens: Tensor) -> None:
    model, moved = tiny_llama(layers=4), {}
    with torch.no_grad():
        wanted = model.model(input_ids=tiny_tokens).last_hidden_state
    for share in (0.0, 0.5):
        subject = PrunableModel(copy.deepcopy(model))
        pruner = PRUNERS.create(name, towards_dense=share)
        prune_sequentially(subject, Budget(0.5).uniform(subject.layout), pruner, tiny_tokens)
        with torch.no_grad():
            found = subject.model.model(input_ids=tiny_tokens).last_hidden_state
        moved[share] = float((found - wanted).square().mean())
    assert moved[0.5] < moved[0.0]


def test_without_weight_the_dense_model_does_not_run(tiny_tokens: Tensor) -> None:
    pruner = PRUNERS.create("sparsegpt", towards_dense=0)
    assert not pruner.needs_dense_inputs
    assert PRUNERS.create("sparsegpt").needs_dense_inputs


def test_a_share_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"towards_dense must lie in 0 … 1, not 1\.5"):
        PRUNERS.create("admm", towards_dense=1.5)
