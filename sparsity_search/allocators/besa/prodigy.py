"""Prodigy: Adam that finds its step size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_FIRST = 1e-6


class Prodigy:
    """Prodigy's Adam version (Mishchenko and Defazio, arXiv 2306.06101, algorithm 4).

    The step size ``d`` is a growing estimate of the distance from the start to the solution,
    ``⟨g, x₀ - x⟩ / ‖g‖₁`` with both parts averaged over the steps. There is no weight decay.

    Args:
        parameters: Leaves with a gradient; they are changed in place. The one estimate is of all.
        lr: Factor of the step.
        d_coef: Factor of the estimate.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float = 1.0, d_coef: float = 1.0) -> None:
        self.d = _FIRST
        self._parameters = list(parameters)
        self._lr, self._coefficient = lr, d_coef
        self._start = [p.detach().clone() for p in self._parameters]
        self._mean, self._square, self._sum = (
            [torch.zeros_like(p) for p in self._start] for _ in range(3)
        )
        self._product = 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        d, beta3 = self.d, math.sqrt(_BETA2)
        weight = (1 - beta3) * self._lr * d * d
        self._product *= beta3
        for i, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None:
                raise ValueError("a parameter has no gradient")
            self._mean[i].mul_(_BETA1).add_(gradient, alpha=(1 - _BETA1) * d)
            self._square[i].mul_(_BETA2).addcmul_(gradient, gradient, value=(1 - _BETA2) * d * d)
            self._sum[i].mul_(beta3).add_(gradient, alpha=weight)
            self._product += weight * float((gradient * (self._start[i] - parameter)).sum())
            root = self._square[i].sqrt().add_(d * _EPSILON)
            parameter.addcdiv_(self._mean[i], root, value=-self._lr * d)
        size = sum(float(part.abs().sum()) for part in self._sum)
        if size > 0:
            self.d = max(d, self._coefficient * self._product / size)
