"""Essential sparsity: each unit is pruned up to the knee of its own error curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.pruning.patterns import groups_of
from sparsity_search.pruning.walk import Pruned, pruned_units
from sparsity_search.registry import PRUNERS, plugin_field

#: Differences of relative errors that are rounding.
_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class EssentialAllocator(Allocator):
    """Each unit's sparsity at the knee of its error curve, moved to meet the budget.

    Essential sparsity (Jaiswal et al., NeurIPS 2023, arXiv 2306.03805) is where a model's
    performance begins to drop sharply. It is no allocator there: one number for a model, found by
    pruning with one global threshold. Here every unit has its own. Its curve is the relative
    layer error ``E‖(W' - W) x‖² / E‖W x‖²`` of what the pruner makes of it alone, on the dense
    model's inputs, at each of ``levels``; 0 at sparsity 0, and 1 at 1.

    The knee is where the curve is farthest below its chord: from there on a percent of sparsity
    costs more than a percent of the output. This rule has no tolerance to choose, and its point
    exists on every curve. A parabola through the best level and its neighbours places it between
    levels. A curve that is nowhere below the chord has its knee at 0; a unit whose output is
    always zero, at 1. Equal curves give the uniform profile.

    Args:
        pruner: Prunes the units.
        levels: Sparsities at which units are pruned, rising within 0 … 1.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads")

    pruner: Pruner = plugin_field(PRUNERS, "wanda")
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)

    def __post_init__(self) -> None:
        limits = (0.0, *self.levels, 1.0)
        if not self.levels or any(not low < high for low, high in pairwise(limits)):
            raise ConfigError(f"levels must rise strictly within 0 … 1, not {list(self.levels)}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return the knees, from one pass of the text through the dense model.

        Raises:
            NumericalError: A weight or an input is not finite.
        """
        curves = self.curves(problem.subject, problem.tokens)
        return np.array([find_knee(*curve) for curve in curves])

    def curves(
        self, subject: PrunableModel, tokens: Tensor
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each unit's sparsities, from 0 to 1, and its relative error at each.

        Args:
            subject: The dense model; unchanged afterwards.
            tokens: Calibration text, ``(n_sequences, length)`` int64.

        Raises:
            NumericalError: An error is not finite.
        """
        tables = [self._counts(unit.count) for unit in subject.layout]
        units = pruned_units(subject, tokens, self.pruner, tables, statistic=Statistic.HESSIAN)
        for counts, pruned in zip(tables, units, strict=True):
            items = pruned.unit.count
            yield np.array([0, *counts, items]) / items, _relative_errors(pruned)

    def _counts(self, n_items: int) -> list[int]:
        """Return distinct counts of items near the levels, neither none nor all."""
        groups = groups_of(self.pruner)
        # groups of M lose a whole number each
        steps = n_items if groups is None else groups.group
        numbers = np.unique(np.rint(np.array(self.levels) * steps).astype(np.int64))
        return [int(n) * n_items // steps for n in numbers if 0 < n < steps]


def _relative_errors(pruned: Pruned) -> np.ndarray:
    """Return the relative error of dense, of each level, and of nothing left; zeros if silent."""
    inputs = pruned.evidence.inputs
    dense, bias = _read_linear(pruned.dense, pruned.evidence)
    whole = compute_output_energy(dense, torch.zeros_like(bias), inputs)
    errors = [0.0]
    for level in pruned.levels:
        weight, moved = _read_linear(level, pruned.evidence)
        errors.append(compute_output_energy(weight - dense, moved - bias, inputs))
    errors.append(whole)
    if not np.isfinite(errors).all():
        raise NumericalError(f"the layer error of {pruned.unit.name} is not finite")
    return np.array(errors) / whole if whole > 0 else np.zeros(len(errors))


def _read_linear(weight: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the linear that reads a unit's inputs, in float32."""
    shape = evidence.structures
    if shape is None:
        return weight.float(), weight.new_zeros(len(weight), dtype=torch.float32)
    return shape.consumer(weight).float(), shape.bias(weight)[:, 0].float()


@torch.no_grad()
def compute_output_energy(weight: Tensor, bias: Tensor, inputs: InputStatistics) -> float:
    """Return the mean over tokens of ``‖W x + b‖²``.

    Args:
        weight: ``(outputs, inputs)`` float32; the change of a weight for an error.
        bias: ``(outputs,)`` float32.
        inputs: Statistics of ``x``, with the Hessian.
    """
    hessian = inputs.derived("hessian", inputs.hessian).to(weight.device)
    energy = float(((weight @ hessian) * weight).sum(dtype=torch.float64))
    if bias.any():
        cross = 2 * (weight @ inputs.mean().to(weight.device)) + bias
        energy += float((cross * bias).sum(dtype=torch.float64))
    return energy


def find_knee(sparsities: np.ndarray, errors: np.ndarray) -> float:
    """Return the sparsity at which a curve is farthest below its chord.

    Args:
        sparsities: Rising from 0 to 1, ``(n,)``.
        errors: Relative errors, ``(n,)``.

    >>> levels = np.linspace(0, 1, 6)
    >>> round(find_knee(levels, levels**2), 9)
    0.5
    """
    below = np.round(sparsities - errors, _DECIMALS)
    best = int(below.argmax())
    if best in (0, len(below) - 1):
        return float(sparsities[best])
    x0, x1, x2 = sparsities[best - 1 : best + 2]
    y0, y1, y2 = (sparsities - errors)[best - 1 : best + 2]
    rise, fall = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (fall - rise) / (x2 - x0)
    top = (x0 + x1) / 2 - rise / (2 * curvature) if curvature < 0 else x1
    return float(np.clip(top, x0, x2))  # outside only where all three are equal but for rounding
