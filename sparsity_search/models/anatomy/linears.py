"""Layers that multiply by a matrix: ``nn.Linear``, and transformers' transposed ``Conv1D``.

GPT-2 and its relatives store the matrix of a layer as ``(inputs, outputs)``. All other code sees
it as in ``nn.Linear``, through `as_matrix`. Both classes have a weight and a bias; the type hints
say ``nn.Linear`` for either.
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
    """Return whether a module is an ``nn.Linear`` or a ``Conv1D``."""
    return isinstance(module, (nn.Linear, Conv1D))


def find_linears(module: nn.Module, prefix: str = "") -> dict[str, nn.Linear]:
    """Return the linear layers in a module by name, in forward order.

    Args:
        module: The module.
        prefix: The name of the module, with which the names begin.
    """
    modules = module.named_modules(prefix=prefix)
    return {name: layer for name, layer in modules if is_linear(layer)}


def as_matrix(linear: nn.Module, tensor: Tensor) -> Tensor:
    """Convert between the layer's storage and ``(outputs, inputs)``, in either direction.

    The result shares memory with ``tensor``.
    """
    return tensor.T if isinstance(linear, Conv1D) else tensor


def read_matrix(linear: nn.Linear) -> Tensor:
    """Return the layer's weight as ``(outputs, inputs)``, sharing memory."""
    return as_matrix(linear, linear.weight.detach())


def read_matrix_gradient(linear: nn.Linear) -> Tensor:
    """Return the gradient of the layer's weight as ``(outputs, inputs)``; zeros if it has none."""
    own = linear.weight.grad
    return torch.zeros_like(read_matrix(linear)) if own is None else as_matrix(linear, own)


class LinearCallMode(TorchFunctionMode):
    """Context in which hooks run for layers whose weight the model multiplies itself.

    Mamba computes ``dt_proj.weight @ inputs`` and adds the bias later, without calling the layer.
    Inside, such a layer is called too, so that its hooks run and gradients flow through the call.
    The result equals the model's own to the bit.

    Args:
        module: The module that contains the layers.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._layers = {id(f.weight): f for f in find_linears(module).values()}

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
        output = layer(args[1].mT)
        if not output.requires_grad:
            return result
        # the model's value with the gradient of the call
        return result.detach() + (output - output.detach()).mT
