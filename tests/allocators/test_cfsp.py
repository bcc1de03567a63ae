from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsity_search.allocators.cfsp as module
from sparsity_search.allocators.cfsp import (
    CFSPAllocator,
    compute_block_densities,
    compute_importances,
    mean_angle,
)
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import with_identity


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.7, contrast: float = 1.0
) -> SparsityProfile:
    bounds = Bounds.of(subject.layout)
    return CFSPAllocator(contrast=contrast).allocate(subject, tokens, Budget(target), bounds)


def block_states(model: nn.Module, tokens: Tensor) -> list[np.ndarray]:
    """Return the hidden states before block 0 and after each block, ``(tokens, hidden)``."""
    found: list[np.ndarray] = []

    def take(_: nn.Module, args: object, output: Tensor | tuple[Tensor]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        found.append(states.flatten(0, 1).double().numpy())

    watched = [model.model.embed_tokens, *model.model.layers]
    handles = [part.register_forward_hook(take) for part in watched]
    with torch.inference_mode():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return found


def angle(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean angle over pi by its formula, in float64."""
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(np.mean(np.arccos((before * after).sum(axis=1) / norms)) / np.pi)


def test_importance_is_the_mean_angle(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4)
    states = block_states(model, tiny_tokens)
    expected = [angle(states[i], states[i + 1]) for i in range(4)]
    found = compute_importances(PrunableModel(model), tiny_tokens)
    assert found == pytest.approx(expected, rel=1e-5)
    assert np.ptp(found) > 0.01


@pytest.mark.parametrize("degrees", [0, 1e-3, 30, 90, 135, 180])
def test_angles(degrees: float) -> None:
    turn = np.deg2rad(degrees)
    before = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    rotation = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    after = 7 * before @ rotation.float()
    assert mean_angle([before], [after]) == pytest.approx(degrees / 180, rel=1e-4, abs=1e-7)


def test_angles_are_a_mean_over_all_tokens() -> None:
    x, y = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    # two right angles among five tokens, in batches of unequal size
    before, after = [x, x.expand(4, 1, 2)], [y, torch.cat([y, x, x, x])]
    assert mean_angle(before, after) == pytest.approx(0.5 * 2 / 5)


def test_zero_states_are_at_right_angles() -> None:
    x, zero = torch.ones(1, 1, 3), torch.zeros(1, 1, 3)
    assert mean_angle([x], [zero]) == pytest.approx(0.5)  # as in the released code
    assert mean_angle([zero], [zero]) == 0


def reference(importance: np.ndarray, target: float) -> np.ndarray:
    """Return the released code's densities of equal blocks, at its own number of tokens."""
    summed = importance * 128 * 1024
    sigmoid = 1 / (1 + np.exp(-(summed - summed.mean()) / 1e4))
    most = (1 - target) * sigmoid.max() / sigmoid.mean()
    if most >= 1:
        mean, high = sigmoid.mean(), sigmoid.max()
        kappa = mean * (1 / (1 - target) - 1) / ((high - mean) * 1.05)
        sigmoid = mean + kappa * (sigmoid - mean)
    return (1 - target) * sigmoid / sigmoid.mean()


@pytest.mark.parametrize("target", [0.1, 0.2, 0.5, 0.7])
def test_densities_are_those_of_the_released_code(target: float) -> None:
    importance = np.array([0.42, 0.18, 0.12, 0.09, 0.11, 0.25])
    found = compute_block_densities(importance, np.ones(6), target)
    np.testing.assert_allclose(found, reference(importance, target), rtol=1e-9)
    assert found.mean() == pytest.approx(1 - target)
    assert np.argsort(found).tolist() == np.argsort(importance).tolist()


def test_hand_computed() -> None:
    # sigmoids 0.25 and 0.75: their logits are -ln 3 and ln 3
    half = np.log(3) / 13.1072
    found = compute_block_densities(np.array([0.5 - half, 0.5 + half]), np.ones(2), 0.6)
    np.testing.assert_allclose(found, [0.2, 0.6], atol=1e-9)


def test_no_density_reaches_one() -> None:
    # unguarded, densities of 0.4 and 1.2
    half = np.log(3) / 13.1072
    found = compute_block_densities(np.array([-half, half]), np.ones(2), 0.2)
    np.testing.assert_allclose(found[1], 0.8 + 0.2 / 1.05)
    np.testing.assert_allclose(found.mean(), 0.8)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
    st.floats(0, 1e4),
)
def test_densities_are_legal(
    blocks: list[tuple[float, int]], target: float, contrast: float
) -> None:
    importance, sizes = (np.array(column, dtype=float) for column in zip(*blocks, strict=True))
    found = compute_block_densities(contrast * importance, sizes, target)
    assert (found >= 0).all()
    assert (found < 1).all()
    assert found @ sizes == pytest.approx((1 - target) * sizes.sum())
    assert (np.diff(found[np.argsort(importance, kind="stable")]) >= -1e-9).all()


@pytest.mark.parametrize("units", ["weights", "width", "heads"])
def test_profile_follows_the_densities(units: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=4), units=units)
    found = allocated(subject, tiny_tokens)
    expected = 1 - reference(np.array(compute_importances(subject, tiny_tokens)), 0.7)
    wanted = np.array([expected[unit.block] for unit in subject.layout])
    off = np.abs(found.sparsities - wanted) * subject.layout.counts
    assert off.max() < (1.01 if units == "weights" else 3)
    assert np.ptp(expected) > 0.1


def test_unequal_blocks(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=3), r"layers\.1\.mlp|layers\.2\.")
    found = allocated(subject, tiny_tokens, 0.37)
    first, second = found.grouped("block").values()
    importance = compute_importances(subject, tiny_tokens)
    assert len(importance) == 3  # excluded blocks run, but take no part
    sizes = np.array([9216, 3072])
    expected = 1 - compute_block_densities(np.array(importance[:2]), sizes, 0.37)
    assert [first, second] == pytest.approx(expected, abs=1e-3)


def test_more_text_of_the_same_kind_changes_nothing(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=4))
    assert allocated(subject, tiny_tokens.repeat(3, 1)) == allocated(subject, tiny_tokens)


def test_a_block_that_does_nothing_is_sparsest(tiny_tokens: Tensor) -> None:
    found = allocated(PrunableModel(with_identity(2)), tiny_tokens, 0.6)
    sparsities = [np.mean(s) for s in np.split(found.sparsities, 4)]
    assert int(np.argmax(sparsities)) == 2


def test_uniform(
    monkeypatch: pytest.MonkeyPatch, tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    uniform = Budget(0.37).uniform(tiny_subject.layout)
    assert allocated(tiny_subject, tiny_tokens, 0.37, contrast=0) == uniform
    assert allocated(tiny_subject, tiny_tokens, 0.37) != uniform
    monkeypatch.setattr(module, "compute_importances", lambda *_: [0.3] * 3)
    assert allocated(tiny_subject, tiny_tokens, 0.37) == uniform


def test_errors(tiny_tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match="contrast must be at least 0"):
        ALLOCATORS.create("cfsp", contrast=-1.0)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="contrast: must be a finite number"):
            ALLOCATORS.create("cfsp", contrast=value)
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(NumericalError, match="hidden states are not finite"):
        allocated(PrunableModel(model), tiny_tokens)
