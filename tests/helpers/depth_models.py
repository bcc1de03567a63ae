"""References for the tests of depth allocators: models that really have fewer layers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.testing.models import tiny_llama


def with_identity(block: int, layers: int = 4, **options: object) -> nn.Module:
    """Return a tiny model with a block that does nothing, though most of its weights are there."""
    model = tiny_llama(layers=layers, **options)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        model.model.layers[block].get_submodule(name).weight.zero_()
    return model


def shorter(model: nn.Module, gone: Iterable[int]) -> nn.Module:
    """Return a model without some of the blocks of a `tiny_llama`."""
    config, gone = model.config, set(gone)
    kept = [i for i in range(config.num_hidden_layers) if i not in gone]
    made = tiny_llama(
        layers=len(kept), attention_bias=config.attention_bias, mlp_bias=config.mlp_bias
    )
    state = model.state_dict()
    for name in made.state_dict():
        if (parts := name.split("."))[1] == "layers":
            parts[2] = str(kept[int(parts[2])])
        made.state_dict()[name].copy_(state[".".join(parts)])
    return made


def loss_of(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean loss of a token, from one plain forward pass in float64."""
    with torch.inference_mode():
        scores = model(input_ids=tokens).logits[:, :-1].double()
    return float(nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()))


def removed_by(
    allocator: Allocator,
    subject: PrunableModel,
    tokens: Tensor,
    n_units: int,
    bounds: Bounds | None = None,
) -> list[int]:
    """Return which units an allocator removes of equal ones, at a budget of ``n_units``."""
    layout = subject.layout
    budget = Budget(n_units / len(layout))
    profile = allocator.allocate(subject, tokens, budget, bounds or Bounds.of(layout))
    return np.flatnonzero(profile.removed).tolist()
