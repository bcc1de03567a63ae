from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsity_search.allocators.block_taylor import (
    BlockTaylorAllocator,
    compute_taylor_importances,
)
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import removed_by
from tests.helpers.families import ALL_FAMILIES


def gradients(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the mean loss by weight, from one backward pass of all the text.

    The weights are those of ``src/anal_block_sensitivity_taylor.py`` of Shortened LLaMA.
    """
    weights = {n: p for n, p in model.named_parameters() if "weight" in n and "layers." in n}
    for weight in weights.values():
        weight.requires_grad_(True)
    scores = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
    loss = nn.functional.cross_entropy(scores, tokens[:, 1:].flatten())
    found = torch.autograd.grad(loss, list(weights.values()))
    model.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


@pytest.mark.parametrize(
    ("family", "units"), [("llama", "blocks"), ("llama", "sublayers"), ("qwen3", "sublayers")]
)
def test_importance_is_the_sum_of_products(family: str, units: str, tiny_tokens: Tensor) -> None:
    """The norms inside count: those of a block, and in Qwen3 those of an attention's heads."""
    model = ALL_FAMILIES[family]()
    subject = PrunableModel(model, units=units)
    slopes = gradients(model, tiny_tokens)
    expected = [
        sum(
            float((model.get_parameter(name) * slope).abs().sum())
            for name, slope in slopes.items()
            if name.startswith(unit.name + ".")
        )
        for unit in subject.layout
    ]
    assert min(expected) > 0
    assert compute_taylor_importances(subject, tiny_tokens) == pytest.approx(expected, rel=1e-3)


def test_least_importance_goes_first(tiny_tokens: Tensor) -> None:
    subject, tokens = PrunableModel(tiny_llama(layers=5), units="blocks"), tiny_tokens[:3]
    order = np.argsort(compute_taylor_importances(subject, tokens))
    allocator = BlockTaylorAllocator(keep_first=0, keep_last=0)
    for n in range(1, 5):
        assert removed_by(allocator, subject, tokens, n) == sorted(order[:n])


def test_ends_are_kept(tiny_tokens: Tensor) -> None:
    subject, tokens = PrunableModel(tiny_llama(layers=8), units="blocks"), tiny_tokens[:2]
    order = np.argsort(compute_taylor_importances(subject, tokens)).tolist()
    inner = [i for i in order if i in (4, 5)]
    rest = [i for i in order if i not in inner]
    assert BlockTaylorAllocator() == BlockTaylorAllocator(keep_first=4, keep_last=2)
    for n in (1, 2, 3, 7):
        expected = sorted((inner + rest)[:n])
        assert removed_by(BlockTaylorAllocator(), subject, tokens, n) == expected


def test_sequences() -> None:
    """Only the first sequences are read."""
    subject, tokens = PrunableModel(tiny_llama(), units="blocks"), draw_random_tokens(5, 8)
    seen: list[Tensor] = []
    embedding = subject.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    removed_by(BlockTaylorAllocator(sequences=2), subject, tokens, 1)
    assert torch.equal(torch.cat(seen), tokens[:2])
