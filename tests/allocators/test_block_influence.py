from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsity_search.allocators.block_influence import BlockInfluenceAllocator, compute_influences
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import removed_by, with_identity
from tests.helpers.families import FAMILIES


def outputs(model: nn.Module, tokens: Tensor, names: list[str]) -> list[Tensor]:
    """Return what modules give in one full forward pass, in float64."""
    seen: list[Tensor] = []

    def take(_: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).double())

    handles = [model.get_submodule(name).register_forward_hook(take) for name in names]
    with torch.inference_mode():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def influence(before: Tensor, after: Tensor) -> float:
    """Return the influence by its formula, one token at a time."""
    tokens = zip(before.flatten(0, 1).numpy(), after.flatten(0, 1).numpy(), strict=True)
    return 1 - float(np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in tokens]))


def test_blocks(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(3))]
    states = outputs(model, tiny_tokens, names)
    expected = {names[i + 1]: influence(states[i], states[i + 1]) for i in range(3)}
    found = compute_influences(PrunableModel(model, units="blocks"), tiny_tokens)
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found.values()) > 0.01


@pytest.mark.parametrize(
    ("family", "added"),
    [
        ("llama", ("self_attn", "mlp")),
        ("gemma3", ("post_attention_layernorm", "post_feedforward_layernorm")),
        ("cohere", ("self_attn", "mlp")),  # both read the block's input
    ],
)
def test_sublayers(family: str, added: tuple[str, str], tiny_tokens: Tensor) -> None:
    model, tokens = FAMILIES[family](), tiny_tokens.clamp(min=1)  # 0 is embedded as zeros
    subject = PrunableModel(model, units="sublayers")
    found = compute_influences(subject, tokens)
    for block in range(3):
        # what is added to the residual stream, and the stream behind the block
        names = [f"model.layers.{block}.{name}" for name in added]
        attention, feed_forward, after = outputs(model, tokens, [*names, f"model.layers.{block}"])
        middle = after - feed_forward
        units = [unit.name for unit in subject.units_of(block)]
        assert found[units[0]] == pytest.approx(influence(middle - attention, middle), rel=1e-3)
        assert found[units[1]] == pytest.approx(influence(middle, after), rel=1e-3)


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
def test_what_does_nothing_has_no_influence(units: str, tiny_tokens: Tensor) -> None:
    found = compute_influences(PrunableModel(with_identity(1), units=units), tiny_tokens)
    for name, value in found.items():
        assert (abs(value) < 1e-6) == ("layers.1" in name)


def test_least_influence_goes_first(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=6), units="blocks")
    order = np.argsort(list(compute_influences(subject, tiny_tokens).values()))
    for n in range(1, 6):
        assert removed_by(BlockInfluenceAllocator(), subject, tiny_tokens, n) == sorted(order[:n])


def test_excluded_sublayers_take_part(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    full = compute_influences(PrunableModel(model, units="sublayers"), tiny_tokens)
    some = compute_influences(PrunableModel(model, r"mlp$", units="sublayers"), tiny_tokens)
    assert some == full
