"""Layers that multiply by a matrix: ``nn.Linear``, and transformers' transposed ``Conv1D``.

GPT-2 and its relatives keep the matrix of a layer as ``(inputs, outputs)``. Everything else sees
it as ``nn.Linear`` has it, through `as_matrix`. Both have a weight and a bias; the types here say
``nn.Linear`` for either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

_PRODUCTS = ("matmul", "__matmul__")


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


def as_matrix(linear: nn.Module, tensor: Tensor) -> Tensor:
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


class Called(TorchFunctionMode):
    """Within, layers whose weight a model multiplies itself run their hooks as if it called them.

    Mamba computes ``dt_proj.weight @ inputs`` and adds the bias later. The result is the model's
    own to the bit; with hooks, gradients flow through the layer's call.

    Args:
        module: Where the layers are.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._layers = {id(f.weight): f for f in named_linears(module).values()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        layer = self._layers.get(id(args[0])) if len(args) == 2 else None
        if layer is None or func.__name__ not in _PRODUCTS:
            return result
        if not (layer._forward_hooks or layer._forward_pre_hooks):
            return result
        made = layer(args[1].mT)
        if not made.requires_grad:
            return result
        return result.detach() + (made - made.detach()).mT  # the value, and the call's gradient
