from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsity_search.allocators.ramp as module
from sparsity_search.allocators.ramp import RampAllocator, Trials
from sparsity_search.errors import ConfigError, InfeasibleBudgetError, UnknownNameError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.testing.evaluator import random_tokens, weights_of
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.allocators.test_owl import ROUNDING


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.6, **settings: Any
) -> SparsityProfile:
    return RampAllocator(**settings).allocate(
        subject, tokens, Budget(target), Bounds.of(subject.layout)
    )


class Stub:
    """Stands for a model where only its layout is read."""

    units = "weights"

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


def stub(blocks: int, size: int = 1_000_000) -> PrunableModel:
    units = [Unit(name=str(b), block=b, role="q", count=size) for b in range(blocks)]
    return Stub(Layout(units))  # type: ignore[return-value]


@pytest.fixture
def tokens() -> Tensor:
    return random_tokens(9, 12)


# --- the ramp -----------------------------------------------------------------------------------


def test_golden_progression(tokens: Tensor) -> None:
    # ATP: 32 blocks, S = 0.7, difference 0.01
    found = allocated(stub(32), tokens, 0.7, slope=0.01).sparsities
    np.testing.assert_allclose(found, 0.545 + 0.01 * np.arange(32), atol=1e-6)
    assert found[-1] == pytest.approx(0.855, abs=1e-6)


@pytest.mark.parametrize("target", [0.3, 0.7])
@pytest.mark.parametrize("slope", [0.002, -0.004, 0.01])
def test_closed_form(target: float, slope: float, tokens: Tensor) -> None:
    found = allocated(stub(20), tokens, target, slope=slope).sparsities
    expected = target - slope * 19 / 2 + slope * np.arange(20)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_reversed_slope_reverses_the_ramp(tokens: Tensor) -> None:
    up = allocated(stub(7), tokens, 0.4, slope=0.03).sparsities
    down = allocated(stub(7), tokens, 0.4, slope=-0.03).sparsities
    np.testing.assert_allclose(up, down[::-1], atol=2e-6)


def test_zero_slope_and_one_block_are_uniform(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    uniform = Budget(0.37).uniform(subject.layout)
    assert allocated(subject, tokens, 0.37, slope=0.0) == uniform
    subject = PrunableModel(tiny_llama(layers=1))
    assert allocated(subject, tokens, 0.37) == Budget(0.37).uniform(subject.layout)


def test_a_steep_slope_is_clipped(tokens: Tensor) -> None:
    found = allocated(stub(5), tokens, 0.5, slope=0.3).sparsities
    np.testing.assert_allclose(found, [0, 0.2, 0.5, 0.8, 1], atol=1e-6)
    assert found.mean() == pytest.approx(0.5)


def test_units_share_the_sparsity_of_their_depth(tokens: Tensor) -> None:
    # a block without units keeps its place, and unequal blocks meet the budget by parameters
    subject = PrunableModel(tiny_llama(layers=4), r"layers\.1\.|layers\.3\.mlp")
    found = allocated(subject, tokens, 0.6, slope=0.05).grouped("block")
    assert found[2] - found[0] == pytest.approx(0.1, abs=2 * ROUNDING)
    assert found[3] - found[2] == pytest.approx(0.05, abs=2 * ROUNDING)


@pytest.mark.parametrize("units", ["weights", "width"])
def test_a_slope_is_not_measured(
    units: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "walk", lambda *_, **__: pytest.fail("the model ran"))
    subject = PrunableModel(tiny_llama(), units=units)
    assert allocated(subject, tokens, 0.5, slope=0.1) != Budget(0.5).uniform(subject.layout)


# --- the choice ---------------------------------------------------------------------------------


def shares(subject: PrunableModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return the norms of each unit's inputs over their sum, from the whole model's run."""
    found = {}
    handles = []
    for name, view in subject.views.items():

        def hook(_: object, args: tuple[Tensor], name: str = name) -> None:
            inputs = subject.views[name].inputs(args[0]).flatten(0, -2).double()
            norms = inputs.square().mean(0).sqrt()
            found[name] = norms / norms.sum()

        handles.append(view.module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        subject.model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return found


def misalignment(
    subject: PrunableModel, tokens: Tensor, profile: SparsityProfile, pruner: Pruner
) -> float:
    """Return NeuroAL's measure against the dense model, by the engine's sequential pruning."""
    return distance(shares(subject, tokens), pruned_shares(subject, tokens, profile, pruner))


def distance(dense: dict[str, Tensor], pruned: dict[str, Tensor]) -> float:
    return sum(float(((dense[n] - pruned[n]) ** 2).sum().sqrt()) / len(dense[n]) for n in dense)


def pruned_shares(
    subject: PrunableModel, tokens: Tensor, profile: SparsityProfile, pruner: Pruner
) -> dict[str, Tensor]:
    with subject.preserved():
        prune_sequentially(subject, profile, pruner, tokens)
        return shares(subject, tokens)


def block_shares(
    subject: PrunableModel, tokens: Tensor, profile: SparsityProfile, pruner: Pruner
) -> dict[str, Tensor]:
    """Return the shares of each block's units with only the blocks before it pruned."""
    found = {}
    with subject.preserved() as dense:
        prune_sequentially(subject, profile, pruner, tokens)
        for block in reversed(range(len(subject.blocks))):
            names = [unit.name for unit in subject.units_of(block)]
            for name in names:
                subject.views[name].write(dense[name])
            now = shares(subject, tokens)
            found.update({name: now[name] for name in names})
    return found


SPREADS = (0.02, 0.08, 0.25)
WANDA = {"weights": "wanda", "width": "wanda_sp", "heads": "wanda_sp"}


@pytest.mark.parametrize("name", ["magnitude", "sparsegpt", "gblm"])
def test_misalignment(name: str, tokens: Tensor) -> None:
    subject, pruner = PrunableModel(tiny_llama(layers=2)), PRUNERS.create(name)
    profile = allocated(subject, tokens, 0.6, slope=0.2)
    trials = Trials(subject, tokens, pruner)
    pruned = pruned_shares(subject, tokens, profile, pruner)
    to_model = distance(shares(subject, tokens), pruned)
    assert trials.misalignment(profile, "model") == pytest.approx(to_model, rel=1e-4)
    to_block = distance(block_shares(subject, tokens, profile, pruner), pruned)
    assert trials.misalignment(profile, "block") == pytest.approx(to_block, rel=1e-4)
    assert 0 < to_block < 0.9 * to_model


def test_against_decides(tokens: Tensor) -> None:
    subject, pruner = PrunableModel(tiny_llama()), PRUNERS.create("wanda")
    bounds = Bounds.of(subject.layout)
    plugin = RampAllocator(spreads=SPREADS[:2], against="block")
    told = plugin.detailed(subject, tokens, Budget(0.6), bounds).notes
    for spread, note in zip(SPREADS, told, strict=False):
        profile = allocated(subject, tokens, 0.6, slope=spread)
        given = (subject, tokens[:8], profile, pruner)
        expected = distance(block_shares(*given), pruned_shares(*given))
        assert float(note.split()[-1]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("units", ["weights", "width", "heads"])
def test_the_least_misalignment_wins(units: str, tokens: Tensor) -> None:
    pruner = PRUNERS.create(WANDA[units])
    for seed in range(2):
        subject = PrunableModel(tiny_llama(seed=seed, layers=3), units=units)
        tried = [
            allocated(subject, tokens, 0.5, slope=spread)  # 3 blocks: 2 steps make 2 spreads
            for spread in SPREADS
        ]
        losses = [misalignment(subject, tokens[:8], profile, pruner) for profile in tried]
        best = int(np.argmin(losses))
        found = allocated(subject, tokens, 0.5, spreads=SPREADS, pruner=pruner)
        assert found == tried[best]


def test_every_place_can_win(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = PrunableModel(tiny_llama())
    for losses, best in ([[3, 1, 2], 1], [[3, 2, 1], 2], [[1, 1, 1], 0], [[2, 1, 1], 1]):
        left = iter(losses)
        monkeypatch.setattr(Trials, "misalignment", lambda *_, left=left: next(left))
        found = allocated(subject, tokens, 0.5, spreads=SPREADS)
        assert found == allocated(subject, tokens, 0.5, slope=SPREADS[best])


def test_only_some_sequences_are_read(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())

    def notes(tokens: Tensor, sequences: int) -> tuple[str, ...]:
        plugin = RampAllocator(sequences=sequences, spreads=SPREADS[:2])
        return plugin.detailed(subject, tokens, Budget(0.5), Bounds.of(subject.layout)).notes

    assert notes(tokens, 3) == notes(tokens[:3], 8) == notes(tokens[:3], 3) != notes(tokens, 9)


def test_what_was_tried_is_told(tokens: Tensor) -> None:
    subject, pruner = PrunableModel(tiny_llama()), PRUNERS.create("wanda")
    bounds = Bounds.of(subject.layout)
    found = RampAllocator(spreads=SPREADS).detailed(subject, tokens, Budget(0.6), bounds)
    assert [note.split(":")[0] for note in found.notes] == [f"spread {s:g}" for s in SPREADS]
    told = [float(note.split()[-1]) for note in found.notes]
    tried = [allocated(subject, tokens, 0.6, slope=spread) for spread in SPREADS]
    expected = [misalignment(subject, tokens[:8], profile, pruner) for profile in tried]
    assert told == pytest.approx(expected, rel=1e-4)
    assert found.profile == tried[int(np.argmin(told))]
    assert not found.arrays


def test_equal_candidates_are_tried_once(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, tried = PrunableModel(tiny_llama()), []
    monkeypatch.setattr(Trials, "misalignment", lambda _, p, __: tried.append(p) or len(tried))
    bounds = Bounds.of(subject.layout, 0.45, 0.55)  # both clip to the same
    plugin = RampAllocator(spreads=(0.02, 0.1, 0.2, 0.02))
    found = plugin.detailed(subject, tokens, Budget(0.5), bounds)
    assert len(tried) == len(set(tried)) == 2
    assert found.notes == ("spread 0.02: misalignment 1", "spread 0.1: misalignment 2")


def test_model_is_put_back_after_an_error(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = PrunableModel(tiny_llama())
    before, calls = weights_of(subject.model), []

    def prune(*_: object) -> None:
        calls.append(sum(subject.zeros().removed))
        subject.views["model.layers.1.mlp.up_proj"].module.weight.zero_()
        raise RuntimeError("stop")

    monkeypatch.setattr(Trials, "_prune", prune)
    with pytest.raises(RuntimeError, match="stop"):
        allocated(subject, tokens)
    assert calls == [0]
    assert all(torch.equal(w, before[n]) for n, w in weights_of(subject.model).items())


def test_inputs_that_are_all_zero(tokens: Tensor) -> None:
    model = tiny_llama(layers=2)
    model.model.layers[1].mlp.up_proj.weight.zero_()
    subject = PrunableModel(model)
    found = RampAllocator(spreads=(0.02, 0.1)).detailed(
        subject, tokens, Budget(0.6), Bounds.of(subject.layout)
    )
    assert all(np.isfinite(float(note.split()[-1])) for note in found.notes)


@pytest.mark.parametrize(("units", "pruner"), [("weights", "wanda"), ("experts", "reap")])
def test_mixture_of_experts(units: str, pruner: str, tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral(), units=units)
    before = weights_of(subject.model)
    found = allocated(subject, tokens, 0.5, spreads=(0.1, 0.25), pruner=pruner).grouped("block")
    assert found[0] < 0.5 < found[1]
    assert all(torch.equal(w, before[n]) for n, w in weights_of(subject.model).items())


# --- settings -----------------------------------------------------------------------------------


def test_defaults() -> None:
    plugin = RampAllocator()
    assert (plugin.slope, plugin.sequences, plugin.pruner) == (None, 8, PRUNERS.create("wanda"))
    assert len(plugin.spreads) == 14
    assert plugin.spreads[0] == 0.01
    assert plugin.spreads[-1] == 0.25


def test_pruner_by_name_and_settings() -> None:
    found = ALLOCATORS.create("ramp", pruner={"name": "sparsegpt", "damping": 0.1}, spreads=[0.1])
    assert found.pruner == PRUNERS.create("sparsegpt", damping=0.1)
    assert hash(found) == hash(RampAllocator(pruner=found.pruner, spreads=(0.1,)))
    with pytest.raises(UnknownNameError, match="did you mean 'wanda'"):
        ALLOCATORS.create("ramp", pruner="wnada")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slope": 1.5}, r"slope must lie in \[-1, 1\], not 1.5"),
        ({"slope": float("nan")}, "slope must lie in"),
        ({"spreads": ()}, r"spreads must be numbers in \(-1, 1\), not \(\)"),
        ({"spreads": (0.1, 1.0)}, "spreads must be numbers"),
        ({"against": "dense"}, "against must be one of model, block, not 'dense'"),
        ({"sequences": 0}, "sequences must be at least 1, not 0"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("ramp", **settings)


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
def test_units_that_go_as_a_whole(units: str, tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units=units)
    with pytest.raises(ConfigError, match=f"weights, width, heads, experts, not {units}"):
        allocated(subject, tokens, slope=0.01)


def test_pruner_of_other_units(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "walk", lambda *_, **__: pytest.fail("the model ran"))
    subject = PrunableModel(tiny_llama(), units="width")
    with pytest.raises(ConfigError, match="the ramp's pruner removes weights, not width"):
        allocated(subject, tokens)
    bounds = Bounds.of(subject.layout, 0.0, 0.2)
    with pytest.raises(InfeasibleBudgetError):
        RampAllocator(pruner="wanda_sp").allocate(subject, tokens, Budget(0.5), bounds)
