"""The best weights that a mask allows, for all rows together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsity_search.evidence.statistics import InputStatistics


class UnitHessian(NamedTuple):
    """The damped Hessian ``H`` in units in which its diagonal is 1.

    Attributes:
        matrix: ``H_ij / √(H_ii H_jj)``, ``(n_inputs, n_inputs)`` float32.
        scale: ``√H_jj``, ``(n_inputs,)`` float32: a weight times it is in these units.
    """

    matrix: Tensor
    scale: Tensor


def compute_unit_hessian(inputs: InputStatistics, damping: float) -> UnitHessian:
    """Return the damped Hessian with unit diagonal, computed once for each damping.

    Raises:
        NumericalError: No tokens were added, or the sums are not finite.
    """

    def make() -> UnitHessian:
        hessian = inputs.damped_hessian(damping)
        scale = hessian.diagonal().sqrt()
        return UnitHessian((hessian / scale / scale[:, None]).float(), scale.float())

    return inputs.derived(("unit hessian", damping), make)


def solve_least_squares(
    weight: Tensor, removed: Tensor, hessian: UnitHessian, iterations: int, tolerance: float
) -> Tensor:
    """Return the kept weights of least layer error, ``w_S = H_SS⁻¹ (H w)_S`` for each row.

    The unknown is the change of the kept weights, ``H_SS δ = (H w_P)_S`` where ``w_P`` are the
    removed ones. It starts at zero, that is at the masked weights, and its rounding errors are
    relative to itself, so that float32 is enough. Unit diagonal is Jacobi preconditioning.

    Args:
        weight: ``(rows, columns)`` float32.
        removed: bool, of the same shape.
        hessian: From `compute_unit_hessian`, on the weight's device.
        iterations: Most steps of conjugate gradients.
        tolerance: A row stops when its residual is this fraction of what it was at the start.

    Returns:
        ``(rows, columns)`` float32; meaningless where ``removed``.
    """
    kept = ~removed
    start = (weight * hessian.scale * removed) @ hessian.matrix * kept
    change = _solve_conjugate_gradients(hessian.matrix, start, kept, iterations, tolerance)
    return weight + change / hessian.scale


def _solve_conjugate_gradients(
    matrix: Tensor, start: Tensor, kept: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Solve ``matrix_SS x = start_S`` for each row, ``S`` being what it keeps.

    Rows are problems of their own, with step lengths of their own: only the products are shared.
    """
    solution, residual, direction = torch.zeros_like(start), start.clone(), start.clone()
    size = _dot(residual, residual)
    goal = size * tolerance**2
    tiny = torch.finfo(start.dtype).tiny  # rows that are solved divide zero by zero
    for _ in range(iterations):
        solved = size <= goal
        if solved.all():
            break
        product = (direction @ matrix).mul_(kept)
        step = size / _dot(direction, product).clamp_min(tiny)
        step.masked_fill_(solved, 0)
        solution.addcmul_(step, direction)
        residual.addcmul_(step, product, value=-1)
        before, size = size, _dot(residual, residual)
        direction.mul_(size / before.clamp_min(tiny)).add_(residual)
    return solution


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=1, keepdim=True)
