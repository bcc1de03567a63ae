from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsity_search.allocators.besa as module
from sparsity_search.allocators.besa import BESAAllocator
from sparsity_search.allocators.besa.block_training import (
    compute_relative_error,
    observe,
)
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.interfaces.allocator import Allocation
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import list_hidden
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.allocator import assert_meets, assert_unchanged
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.masked_models import subject_of


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(3, 12)


def learned(
    subject: PrunableModel,
    tokens: Tensor,
    target: float = 0.6,
    bounds: Bounds | None = None,
    **settings: Any,
) -> Allocation:
    bounds = bounds or Bounds.of(subject.layout)
    settings = {"step": 0.05, **settings}  # few candidates, for speed
    return BESAAllocator(**settings).detailed(subject, tokens, Budget(target), bounds)


def blocks_of(found: Allocation) -> np.ndarray:
    return np.array(list(found.profile.grouped("block").values()))


def hidden_states(model: Any, tokens: Tensor) -> list[Tensor]:
    """Return what the model's blocks put out, by its own forward."""
    found: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda *a: found.append(a[2])) for b in model.model.layers]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("target", [0.37, 0.7, 0.9])
def test_each_block_meets_the_target(target: float, tokens: Tensor) -> None:
    subject = subject_of(3, exclude=r"layers\.1\.mlp")
    found = learned(subject, tokens, target)
    assert_meets(found.profile, Budget(target))
    np.testing.assert_allclose(blocks_of(found), target, atol=8 / 3072)
    assert np.ptp(found.profile.sparsities) > 0.008


def test_training_lowers_the_error(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    for epochs in (0, 2):
        subject = subject_of(1)
        rates = learned(subject, tokens, 0.6, epochs=epochs).arrays
        runner = BlockRunner(subject, tokens, at_once=1)
        hidden = runner.embed()
        block, wanted = observe(subject, runner, 0, hidden)
        masks = {}
        for name, view in block.views.items():
            scores = view.read().abs() * block.statistics[name].norms()
            counts = torch.from_numpy(rates[name] * scores.shape[1]).round()
            masks[name] = scores.argsort(1).argsort(1) >= counts[:, None]
        outputs = [block(states, masks).hidden for states in hidden]
        errors = [
            compute_relative_error(o, y) for o, y in zip(outputs, list_hidden(wanted), strict=True)
        ]
        held.append(float(torch.stack(errors).mean()))
    assert held[1] < 0.93 * held[0]


def test_without_training_it_is_uniform(tokens: Tensor) -> None:
    subject = subject_of()
    found = learned(subject, tokens, 0.37, epochs=0)
    assert found.profile == Budget(0.37).uniform(subject.layout)


@pytest.mark.parametrize("per", ["row", "layer"])
def test_rates_of_rows(per: str, tokens: Tensor) -> None:
    subject = subject_of()
    found = learned(subject, tokens, 0.7, per=per, scope="model")
    assert list(found.arrays) == [unit.name for unit in subject.layout]
    for name, sparsity in zip(subject.views, found.profile.sparsities, strict=True):
        rates = found.arrays[name]
        assert rates.shape == (len(subject.views[name].read()),)
        assert rates.dtype == np.float32
        assert rates.mean() == pytest.approx(sparsity, abs=1e-6)
        assert rates.min() >= 0
        assert rates.max() <= 1
        assert (np.ptp(rates) > 1e-3) == (per == "row")
    again = BESAAllocator(per=per, scope="model", step=0.05)
    bounds = Bounds.of(subject.layout)
    assert again.allocate(subject, tokens, Budget(0.7), bounds) == found.profile
    assert "of the target" in found.notes[0]


def robust_last(layers: int = 3) -> PrunableModel:
    """A model whose last block adds next to nothing to its input."""
    model = tiny_llama(layers=layers)
    model.model.layers[-1].mlp.down_proj.weight *= 0.02
    model.model.layers[-1].self_attn.o_proj.weight *= 0.02
    return PrunableModel(model)


def test_the_model_scope_moves_sparsity_to_robust_blocks(tokens: Tensor) -> None:
    for target, spread in ((0.6, 0.2), (0.7, 0.1)):
        found = blocks_of(learned(robust_last(), tokens, target, scope="model", spread=spread))
        assert found[2] == pytest.approx(target + spread, abs=0.002)
        assert found[0] < target - 0.02
        assert (found > target - spread - 0.002).all()
    same = blocks_of(learned(robust_last(), tokens, 0.6))
    np.testing.assert_allclose(same, 0.6, atol=0.001)


def test_the_model_scope_lowers_the_sum_of_errors(tokens: Tensor) -> None:
    curves: list[Any] = []
    original = module.balance_sparsities

    def spy(*given: Any) -> np.ndarray:
        found = original(*given)
        curves.append((*given, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "balance_sparsities", spy)
        learned(subject_of(3), tokens, 0.6, scope="model")
    ((levels, errors, _, target, found),) = curves

    def total(at: np.ndarray) -> float:
        return sum(float(np.interp(s, x, e)) for s, x, e in zip(at, levels, errors, strict=True))

    assert all((np.diff(e) > 0).all() for e in errors)
    np.testing.assert_allclose(levels[0], [0.4, 0.5, 0.6, 0.7, 0.8])
    assert total(found) < total(np.full(3, target))


@pytest.mark.parametrize("scope", ["block", "model"])
def test_bounds(scope: str, tokens: Tensor) -> None:
    subject = subject_of(3)
    lower, upper = np.zeros(21), np.ones(21)
    upper[0], lower[3], upper[14:] = 0.2, 0.9, 0.6
    bounds = Bounds.of(subject.layout, lower, upper)
    found = learned(subject, tokens, 0.6, bounds, scope=scope)
    assert_meets(found.profile, Budget(0.6))
    assert (bounds.lower <= found.profile.removed).all()
    assert (found.profile.removed <= bounds.upper).all()
    if scope == "block":  # bounds of a unit are made good within its block
        np.testing.assert_allclose(blocks_of(found), 0.6, atol=0.002)


def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return a list that gets what each block is trained on and for."""
    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    original = BESAAllocator._fit

    def fit(self: BESAAllocator, block: Any, hidden: Any, wanted: Any, target: float) -> Any:
        seen.append((list_hidden(hidden), list_hidden(wanted)))
        return original(self, block, hidden, wanted, target)

    monkeypatch.setattr(BESAAllocator, "_fit", fit)
    return seen


def test_blocks_are_trained_on_what_the_pruned_ones_put_out(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, seen = subject_of(), fits(monkeypatch)
    rates = learned(subject, tokens, 0.6).arrays
    dense = hidden_states(subject.model, tokens)
    np.testing.assert_allclose(torch.cat(seen[0][1]), dense[0], atol=1e-5)
    with subject.preserved() as weights:
        statistics = next(walk(subject, tokens, Statistic.NORM, rewritten=False)).statistics
        for unit in subject.units_of(0):
            weight = weights[unit.name]
            order = (weight.abs() * statistics[unit.name].norms()).argsort(1).argsort(1)
            counts = torch.from_numpy(rates[unit.name] * weight.shape[1]).round()
            subject.views[unit.name].write(weight * (order >= counts[:, None]))
        first, second = hidden_states(subject.model, tokens)
    # rounding the profile moves a unit by less than a weight, and few rows by one
    assert float(compute_relative_error(torch.cat(seen[1][0]), first)) < 0.02
    assert float(compute_relative_error(torch.cat(seen[1][0]), dense[0])) > 0.1
    outputs = torch.cat(seen[1][1])
    assert float(compute_relative_error(outputs, second)) < 0.02
    assert float(compute_relative_error(outputs, dense[1])) > 0.02


def test_a_block_without_units_is_passed(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, seen = subject_of(2, exclude=r"layers\.0\."), fits(monkeypatch)
    learned(subject, tokens)
    np.testing.assert_allclose(
        torch.cat(seen[0][0]), hidden_states(subject.model, tokens)[0], atol=1e-5
    )


def test_only_so_many_sequences_are_used() -> None:
    tokens, other = draw_random_tokens(6, 10), draw_random_tokens(6, 10, seed=1)
    subject = subject_of(1)
    first = learned(subject, tokens, sequences=3)
    same = learned(subject, torch.cat([tokens[:3], other]), sequences=3)
    assert first.profile == same.profile
    assert first.profile != learned(subject, tokens, sequences=6).profile


def test_learning_rate(tokens: Tensor) -> None:
    subject = subject_of(1)
    slow = learned(subject, tokens, learning_rate=1e-6).profile
    np.testing.assert_allclose(slow.sparsities, 0.6, atol=1 / 512)
    fast = learned(subject, tokens, learning_rate=0.3).profile
    assert np.abs(fast.sparsities - 0.6).max() > 0.02


def test_mixture_of_experts(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral(layers=1), r"experts\.3\.")
    found = learned(subject, tokens[:2], 0.7)
    assert_meets(found.profile, Budget(0.7))
    assert len(found.arrays) == 4 + 2 * 7
    assert np.ptp(found.profile.sparsities) > 0.01


@pytest.mark.parametrize("requires", [True, False])
def test_gradients_stay_inside(requires: bool, tokens: Tensor) -> None:
    subject = subject_of(1)
    expected = learned(subject, tokens)
    subject.model.requires_grad_(requires)
    with torch.no_grad():
        found = learned(subject, tokens)
    assert found.profile == expected.profile
    assert all(p.grad is None and p.requires_grad == requires for p in subject.model.parameters())


@pytest.mark.parametrize(
    "when", ["compute_relative_error", "build_keep_mask", "build_candidate_rates"]
)
def test_model_is_unchanged_after_an_error(
    when: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of()
    before = copy_weights(subject.model)
    left, original = iter(range(3)), getattr(module, when)

    def fails(*given: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(module, when, fails)
    with pytest.raises(KeyboardInterrupt):
        learned(subject, tokens)
    assert_unchanged(subject.model, before)
    assert not any(m._forward_pre_hooks for m in subject.model.modules())


def test_hooks_go_when_a_block_fails(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of()

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(InputStatistics, "add", fails)
    with pytest.raises(KeyboardInterrupt):
        learned(subject, tokens)
    assert_unchanged(subject.model, copy_weights(subject.model))


@pytest.mark.parametrize("value", [float("nan"), 1e25])
def test_what_is_not_finite(value: float, tokens: Tensor) -> None:
    subject = subject_of()
    subject.views["model.layers.0.mlp.down_proj"].read()[0, 0] = value
    with pytest.raises(NumericalError, match="finite"):
        learned(subject, tokens)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"per": "head"}, "per must be row or layer, not 'head'"),
    ({"scope": "all"}, "scope must be block or model"),
    ({"step": 0.0}, "step must lie"),
    ({"step": 1.5}, "step must lie"),
    ({"spread": 0.0}, "spread in"),
    ({"spread": 1.0}, "spread in"),
    ({"penalty": -1.0}, "penalty must be"),
    ({"penalty": float("inf")}, "penalty: must be a finite number"),
    ({"width": 0.0}, "width positive"),
    ({"width": float("nan")}, "width positive"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"epochs": -1}, "epochs must be"),
    ({"sequences": 0}, "sequences at least 1"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_settings(settings: dict[str, Any], message: str) -> None:
    create: Callable[..., Any] = ALLOCATORS.create
    with pytest.raises(ConfigError, match=message):
        create("besa", **settings)
