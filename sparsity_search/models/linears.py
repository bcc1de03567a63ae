"""Layers that multiply by a matrix: ``nn.Linear``, and transformers' transposed ``Conv1D``.

GPT-2 and its relatives keep the matrix of a layer as ``(inputs, outputs)``. Everything else sees
it as ``nn.Linear`` has it, through `as_matrix`. Both have a weight and a bias; the types here say
``nn.Linear`` for either.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is such a layer."""
    return isinstance(module, (nn.Linear, Conv1D))


def named_linears(module: nn.Module, prefix: str = "") -> dict[str, nn.Linear]:
    """Return the linear layers in a module by name, in forward order.

    Args:
        module: Where to look.
        prefix: Its own name, that theirs begin with.
    """
    found = module.named_modules(prefix=prefix)
    return {name: layer for name, layer in found if is_linear(layer)}


def as_matrix(linear: nn.Linear, tensor: Tensor) -> Tensor:
    """Return a tensor of the shape of the layer's weight as ``(outputs, inputs)``, or the reverse.

    It shares memory with ``tensor``.
    """
    return tensor.T if isinstance(linear, Conv1D) else tensor


def matrix(linear: nn.Linear) -> Tensor:
    """Return the layer's weight as ``(outputs, inputs)``; shares memory."""
    return as_matrix(linear, linear.weight.detach())


def gradient(linear: nn.Linear) -> Tensor:
    """Return the gradient of the layer's weight as ``(outputs, inputs)``; zeros if it has none."""
    found = linear.weight.grad
    return torch.zeros_like(matrix(linear)) if found is None else as_matrix(linear, found)
