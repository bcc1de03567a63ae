from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import NumericalError, ProfileError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.runner import compute_batch_size
from sparsity_search.models.running.walk import Refresh
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from sparsity_search.utils.random import derive_seed
from tests.helpers.names import OF_EXPERTS, OF_STRUCTURES, OF_WEIGHTS

#: Pruners of what a Llama has.
HERE = [name for name in PRUNERS.names() if name not in OF_EXPERTS]


@pytest.mark.parametrize("target", [0.1, 0.37, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_zeros_are_exact(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, name: str, target: float
) -> None:
    layout = tiny_subject.layout
    wanted = torch.rand(len(layout), generator=torch.Generator().manual_seed(0)).numpy()
    profile = Budget(target).project(layout, wanted)
    prune_sequentially(tiny_subject, profile, PRUNERS.create(name), tiny_tokens)
    zeros = {
        name: int((weight == 0).sum())
        for name, weight in copy_weights(tiny_subject.model).items()
        if name.removesuffix(".weight") in tiny_subject.views
    }
    assert list(zeros.values()) == list(profile.removed)
    assert sum(zeros.values()) == round(target * layout.n_weights)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("name", [name for name in OF_STRUCTURES if name in HERE])
def test_structures_are_exact(tiny_tokens: Tensor, name: str, target: float) -> None:
    pruner = PRUNERS.create(name)
    for units in pruner.units:
        subject = PrunableModel(tiny_llama(), units=units)
        wanted = torch.rand(len(subject.layout), generator=torch.Generator().manual_seed(0))
        profile = Budget(target).project(subject.layout, wanted.numpy())
        prune_sequentially(subject, profile, pruner, tiny_tokens)
        zeros = sum(
            int((weight == 0).sum())
            for key, weight in copy_weights(subject.model).items()
            if key.endswith("proj.weight")
        )
        assert zeros == profile.n_removed
        assert subject.model(input_ids=tiny_tokens[:1]).logits.isfinite().all()


def collect_inputs(subject: PrunableModel, name: str, tokens: Tensor) -> list[Tensor]:
    """Return the inputs of a unit's layer in full forward passes, for each batch."""
    view, found = subject.views[name], []
    handle = view.module.register_forward_pre_hook(
        lambda _, args: found.append(view.inputs(args[0]))
    )
    with torch.inference_mode():
        for batch in tokens.split(compute_batch_size(tokens.device, tokens.shape[1])):
            subject.model(input_ids=batch, use_cache=False)
    handle.remove()
    return found


def plain_evidence(
    subject: PrunableModel,
    block: int,
    tokens: Tensor,
    statistic: Statistic,
    dense: PrunableModel | None,
) -> dict[str, Evidence]:
    """What is known of a block's units, from hooks on full forward passes.

    Args:
        subject: The model as it is pruned so far.
        block: Index of the block.
        tokens: The text.
        statistic: Of the inputs.
        dense: The dense model, if its inputs count.
    """
    found = {}
    for unit in subject.units_of(block):
        width = subject.views[unit.name].module.weight.shape[1]
        found[unit.role] = InputStatistics(width, statistic)
        inputs = collect_inputs(subject, unit.name, tokens)
        wanted = (
            [None] * len(inputs) if dense is None else collect_inputs(dense, unit.name, tokens)
        )
        for pair in zip(inputs, wanted, strict=True):
            found[unit.role].add(*pair)
    return {
        unit.name: Evidence(
            inputs=found[unit.role],
            following=found["down"] if unit.role in ("gate", "up") else None,
            structures=subject.views[unit.name].structures,
        )
        for unit in subject.units_of(block)
    }


#: Roles that are pruned at once; all at once where a block is.
PARTS: dict[Refresh, list[set[str]]] = {
    "layer": [
        *({"q", "k", "v"}, {"o"}, {"gate", "up"}, {"down"}),
        *({"attention"}, {"feed_forward"}, {"block"}),
    ],
    "sublayer": [
        {"q", "k", "v", "o", "attention"},
        {"gate", "up", "down", "feed_forward", "block"},
    ],
    "block": [{"q", "k", "v", "o", "attention", "gate", "up", "down", "feed_forward", "block"}],
}


@pytest.mark.parametrize("refresh", PARTS)
@pytest.mark.parametrize("name", HERE)
def test_each_part_sees_the_pruned_ones_before_it(
    tiny_tokens: Tensor, name: str, refresh: Refresh
) -> None:
    pruner = PRUNERS.create(name)
    units = pruner.units[0]
    subject = PrunableModel(tiny_llama(), units=units)
    other = PrunableModel(tiny_llama(), units=units)
    profile = Budget(0.6).uniform(subject.layout)
    uses_dense = pruner.needs_dense_inputs and refresh == "layer"
    dense = PrunableModel(tiny_llama(), units=units) if uses_dense else None
    gradients = compute_weight_gradients(other, tiny_tokens) if pruner.needs_gradient else {}
    pruner.merge(other, profile)
    prune_sequentially(subject, profile, pruner, tiny_tokens, seed=4, refresh=refresh)
    for block, roles in product(range(3), PARTS[refresh]):
        new = {}
        known = plain_evidence(other, block, tiny_tokens, pruner.requires, dense)
        for unit in other.units_of(block):
            if unit.role not in roles:
                continue
            view = other.views[unit.name]
            evidence = replace(known[unit.name], gradient=gradients.get(unit.name))
            count = profile.removed[profile.layout.position(unit.name)]
            seed = derive_seed(4, "ties", unit.name)
            variants = pruner.prune(view.read(), evidence, [count], seed=seed)
            new[unit.name] = variants.at(view.read(), count)
        for unit_name, weight in new.items():
            other.views[unit_name].write(weight)
    expected = copy_weights(other.model)
    assert all(torch.equal(w, expected[key]) for key, w in copy_weights(subject.model).items())


def test_only_units_are_pruned(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), r"down_proj|layers\.1\.")
    before = copy_weights(subject.model)
    profile = Budget(0.5).uniform(subject.layout)
    prune_sequentially(subject, profile, WandaPruner(), tiny_tokens)
    for name, weight in copy_weights(subject.model).items():
        assert torch.equal(weight, before[name]) != (name.removesuffix(".weight") in subject.views)


def test_existing_zeros_count(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight[:60] = 0
    subject = PrunableModel(model)
    profile = Budget(0.5).project(subject.layout, torch.full((21,), 0.5).numpy())
    assert max(profile.sparsities) == pytest.approx(60 / 64)
    prune_sequentially(subject, profile, WandaPruner(), tiny_tokens)
    assert subject.zeros() == profile


def test_can_be_undone(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    before = copy_weights(tiny_subject.model)
    profile = Budget(0.5).uniform(tiny_subject.layout)
    with tiny_subject.preserved():
        prune_sequentially(tiny_subject, profile, WandaPruner(), tiny_tokens)
    assert all(torch.equal(w, before[n]) for n, w in copy_weights(tiny_subject.model).items())


def test_blocks_are_told(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    blocks: list[int] = []
    profile = Budget(0.5).uniform(tiny_subject.layout)
    prune_sequentially(tiny_subject, profile, WandaPruner(), tiny_tokens, on_block=blocks.append)
    assert blocks == [0, 1, 2]


@dataclass(frozen=True, kw_only=True)
class Talking(WandaPruner):
    """Wanda with a note."""

    def prune(self, *args: Any, **kwargs: Any) -> Any:
        return replace(super().prune(*args, **kwargs), notes=("hm",))


@dataclass(frozen=True, kw_only=True)
class Sloppy(WandaPruner):
    """Wanda that leaves one weight too many."""

    def prune(self, weight: Tensor, evidence: Any, counts: Any, *, seed: int) -> Any:
        found = super().prune(weight, evidence, [counts[0] - 1], seed=seed)
        return replace(found, counts=tuple(counts))


def test_notes(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    profile = Budget(0.5).uniform(tiny_subject.layout)
    notes = prune_sequentially(tiny_subject, profile, Talking(), tiny_tokens)
    assert notes == [f"{unit.name}: hm" for unit in tiny_subject.layout]


def test_a_pruner_that_misses_its_count_is_found_out(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    profile = Budget(0.5).uniform(tiny_subject.layout)
    with pytest.raises(ProfileError, match=r"0\.self_attn\.q_proj has 511 zeros of 1024"):
        prune_sequentially(tiny_subject, profile, Sloppy(), tiny_tokens)


def test_statistics_gathered_are_those_required(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    seen = set()

    @dataclass(frozen=True, kw_only=True)
    class Looking(WandaPruner):
        def prune(self, weight: Tensor, evidence: Evidence, *args: Any, **kwargs: Any) -> Any:
            seen.add((evidence.inputs.statistic, evidence.inputs.n_tokens))
            return super().prune(weight, evidence, *args, **kwargs)

    bounds = Bounds.of(tiny_subject.layout)
    profile = Budget(0.5).uniform(tiny_subject.layout, bounds)
    prune_sequentially(tiny_subject, profile, Looking(), tiny_tokens)
    assert seen == {(Statistic.NORM, tiny_tokens.numel())}


@pytest.mark.parametrize("name", ["sparsegpt", "flap"])
@pytest.mark.parametrize("saved_as", [torch.float16, torch.bfloat16])
def test_weights_are_rounded_to_the_type_in_which_they_are_saved(
    tiny_tokens: Tensor, name: str, saved_as: torch.dtype
) -> None:
    pruner = PRUNERS.create(name)
    subject = PrunableModel(tiny_llama(), units=pruner.units[0], saved_as=saved_as)
    profile = Budget(0.4).project(subject.layout, [0.4] * len(subject.layout))
    seen: dict[str, Tensor] = {}
    prune_sequentially(subject, profile, pruner, tiny_tokens)
    for unit, view in subject.views.items():
        seen[unit] = view.read()
        assert torch.equal(seen[unit], seen[unit].to(saved_as).float())
    assert subject.zeros().removed == profile.removed
    exact = PrunableModel(tiny_llama(), units=pruner.units[0])
    prune_sequentially(exact, profile, pruner, tiny_tokens)
    assert any(not torch.equal(view.read(), seen[unit]) for unit, view in exact.views.items())


def test_a_weight_that_rounds_to_zero_counts_as_kept(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight[:, 0] = 1e-9
    subject = PrunableModel(model, saved_as=torch.float16)
    profile = subject.zeros()
    prune_sequentially(subject, profile, WandaPruner(), tiny_tokens)
    assert profile.n_removed == 0
    weight = model.model.layers[0].mlp.up_proj.weight
    assert (weight.half() == 0).sum() == 0
    assert set(weight[:, 0].tolist()) == {torch.finfo(torch.float16).tiny}


def test_a_weight_beyond_the_range_of_its_type_is_an_error(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    subject = PrunableModel(model, saved_as=torch.float16)
    with pytest.raises(NumericalError, match=r"leave the range of torch\.float16"):
        prune_sequentially(subject, subject.zeros(), WandaPruner(), tiny_tokens)
