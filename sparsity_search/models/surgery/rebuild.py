"""A new model of a model's class, from another configuration and given weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def rebuild(model: PreTrainedModel, config: Any, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a new model on the same device, with its own copy of the weights.

    Args:
        model: Gives the class and the generation settings.
        config: The configuration of the new model.
        weights: Its state dict, whose number types it takes. Biases may be missing, and are zeros.

    Raises:
        RuntimeError: The weights do not fit.
        ValueError: The configuration is not legal.
    """
    with torch.random.fork_rng(devices=[]):
        new = type(model)(config)
    new.to(device=model.device)
    state = dict(weights)
    for name, tensor in new.state_dict(keep_vars=True).items():
        if name not in state and name.endswith(".bias"):
            # a switch gives neighbours a bias too
            state[name] = torch.zeros_like(tensor, dtype=model.dtype)
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    new.load_state_dict(state)
    new.generation_config = copy.deepcopy(model.generation_config)
    result: PreTrainedModel = new.eval().requires_grad_(False)
    return result
