"""A unit's weights as one matrix, however the model stores them.

Pruners and supernet only ever see a view, so that transposed, fused or 3-D weights need a new
view here and nothing elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class View(ABC):
    """The weights of one unit."""

    @abstractmethod
    def read(self) -> Tensor:
        """Return the weights as ``(outputs, inputs)``; may share memory with the model."""

    @abstractmethod
    def read_gradient(self) -> Tensor:
        """Return the gradient of the weights, ``(outputs, inputs)``, after a backward pass."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Return the parameters that hold the weights."""

    @abstractmethod
    def write(self, weight: Tensor) -> None:
        """Replace the weights, ``(outputs, inputs)``, in the model's dtype."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module whose first argument is the unit's input."""

    def n_zeros(self) -> int:
        """Return how many weights are exactly zero."""
        weight = self.read()
        return weight.numel() - int(torch.count_nonzero(weight))


class LinearView(View):
    """The weight of an ``nn.Linear``."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    @property
    def module(self) -> nn.Module:
        """The linear layer itself."""
        return self._linear

    def read(self) -> Tensor:
        """Return the layer's weight."""
        return self._linear.weight.detach()

    def read_gradient(self) -> Tensor:
        """Return the gradient of the layer's weight."""
        gradient = self._linear.weight.grad
        return torch.zeros_like(self.read()) if gradient is None else gradient

    def parameters(self) -> list[Tensor]:
        """Return the layer's weight."""
        return [self._linear.weight]

    def write(self, weight: Tensor) -> None:
        """Copy ``weight`` into the layer's weight."""
        self._linear.weight.detach().copy_(weight)
