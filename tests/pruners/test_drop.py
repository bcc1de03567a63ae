from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruners.drop import DropPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import shorter


def biased(layers: int = 4) -> torch.nn.Module:
    """Return a tiny model whose linears have biases that are not zero."""
    model = tiny_llama(layers=layers, attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.add_(0.3)
    return model


def drop(model: torch.nn.Module, tokens: Tensor, removed: list[int], units: str) -> None:
    subject = PrunableModel(model, units=units)
    profile = from_counts(subject.layout, removed)
    assert prune_sequentially(subject, profile, DropPruner(), tokens) == []


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
def test_nothing_removed_is_the_dense_model(units: str, tiny_tokens: Tensor) -> None:
    model = biased()
    before = copy_weights(model)
    drop(model, tiny_tokens, [0] * (4 if units == "blocks" else 8), units)
    after = copy_weights(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("gone", [{0}, {3}, {1, 2}, {0, 1, 3}])
@pytest.mark.parametrize("units", ["blocks", "sublayers"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_dropped_block_is_a_deleted_one(
    units: str, gone: set[int], with_bias: bool, tiny_tokens: Tensor
) -> None:
    model = biased() if with_bias else tiny_llama(layers=4)
    expected = shorter(model, gone)
    removed = np.repeat([int(i in gone) for i in range(4)], 1 if units == "blocks" else 2)
    drop(model, tiny_tokens, removed.tolist(), units)
    with torch.inference_mode():
        found, wanted = (m(input_ids=tiny_tokens).logits for m in (model, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("which", [0, 1])
def test_a_dropped_sublayer_adds_nothing(which: int, tiny_tokens: Tensor) -> None:
    model = biased()
    removed = [0] * 8
    removed[2 + which] = 1
    drop(model, tiny_tokens, removed, "sublayers")
    added = []
    block = model.model.layers[1]
    for part in (block.self_attn, block.mlp):
        part.register_forward_hook(
            lambda _, args, out: added.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.inference_mode():
        model(input_ids=tiny_tokens)
    assert not added[which].any()
    assert added[1 - which].any()
