from __future__ import annotations

import copy

import pytest
import torch

from sparsity_search.models.surgery.rebuild import rebuild
from sparsity_search.testing.models import tiny_llama
from tests.helpers.checkpoints import compute_logits

NORM = "model.norm.weight"


def test_weights_keep_their_types_and_bits() -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    model.model.norm.weight.data = 1 + torch.rand(32)  # as some classes keep them in float32
    weights = copy.deepcopy(model.state_dict())
    made = rebuild(model, model.config, model.state_dict())
    model.model.norm.weight.zero_()
    found = made.state_dict()
    assert found.keys() == weights.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_the_logits_are_equal() -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    made = rebuild(model, model.config, model.state_dict())
    assert torch.equal(compute_logits(made), compute_logits(model))


def test_biases_without_weights_are_zeros() -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    config = copy.deepcopy(model.config)
    config.mlp_bias = True
    made = rebuild(model, config, model.state_dict())
    biases = [p for name, p in made.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 3 * 3
    assert all(bias.dtype == torch.bfloat16 and not bias.any() for bias in biases)


def test_weights_that_do_not_fit_are_an_error() -> None:
    model = tiny_llama()
    config = copy.deepcopy(model.config)
    config.intermediate_size = 48
    with pytest.raises(RuntimeError, match="size mismatch"):
        rebuild(model, config, model.state_dict())
