"""The layer problem in float64: its Hessian, its error, and the best weights of a mask."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01


def hessian_of(inputs: Tensor) -> Tensor:
    """The damped Hessian that the pruner sees, in float64."""
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))


def layer_error(change: Tensor, hessian: Tensor) -> float:
    return float(((change.double() @ hessian) * change.double()).sum())


def ls_oracle(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The best weights with this mask: for each row, H_SS w_S = H_S,: w."""
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, out in zip(weight.double(), keep, best, strict=True):
        out[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
    return best
