"""The error of each layer's own output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import Scores
from sparsity_search.pruning.walk import Pruned, pruned_units
from sparsity_search.sensitivities.bases.losses import enforce_rising


@dataclass(frozen=True, kw_only=True)
class LayerErrorSensitivity(Sensitivity):
    """Exact squared error of a layer's outputs, relative to the outputs: one pass of the text.

    ``tr(ΔW H ΔWᵀ) / tr(W H Wᵀ)`` with the mean ``H`` of ``x xᵀ`` over the calibration text: what
    SparseGPT (arXiv 2301.00774, equation 1) minimises, made comparable between layers. It does
    not know how much an error matters to the model. Of structures the consumers' outputs count,
    with what a pruner adds to their bias in return.

    Attributes:
        relative: Divide by the size of the dense outputs.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "sublayers")
    experimental: ClassVar[str] = (
        "perplexity of its knapsack with Wanda at 70% 1.40 times that of uniform (SmolLM2-135M)"
    )

    relative: bool = True

    def measure(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        pruner: Pruner,
        tables: Sequence[tuple[int, ...]],
        *,
        seed: int = 0,
    ) -> Scores:
        """Return the errors, see `Sensitivity.measure`."""
        self.check_units(subject.units)
        units = pruned_units(
            subject, tokens, pruner, tables, seed=seed, statistic=Statistic.HESSIAN
        )
        losses = tuple(self._errors(pruned) for pruned in units)
        return Scores(subject.layout, tuple(np.array(table) for table in tables), losses)

    def _errors(self, pruned: Pruned) -> np.ndarray:
        moments, dense = _compute_moments(pruned), pruned.dense.float()
        whole = _copy_reader(pruned, dense)
        whole[:, pruned.evidence.inputs.n_inputs :] = (
            0  # the bias is no size of what the weights write
        )
        size = _compute_error(whole, moments) if self.relative else 1.0
        changes = (_copy_reader(pruned, level.float() - dense) for level in pruned.levels)
        return enforce_rising(
            [_compute_error(c, moments) / (size or 1.0) for c in changes], pruned.unit.name
        )


def _compute_moments(pruned: Pruned) -> Tensor:
    """Return the mean of ``x xᵀ``; behind the inputs of structures stands a constant 1."""
    hessian = pruned.evidence.inputs.hessian()
    if pruned.view.structures is None:
        return hessian
    mean, one = pruned.evidence.inputs.mean()[:, None], hessian.new_ones(1, 1)
    return torch.cat([torch.cat([hessian, mean], dim=1), torch.cat([mean.T, one], dim=1)])


def _copy_reader(pruned: Pruned, weight: Tensor) -> Tensor:
    """Return a copy of what multiplies the inputs, with the bias of structures behind it."""
    shape = pruned.view.structures
    if shape is None:
        return weight.clone()
    return torch.cat([shape.consumer(weight), shape.bias(weight)], dim=1)


def _compute_error(change: Tensor, hessian: Tensor) -> float:
    """Return ``tr(Δ H Δᵀ)``."""
    return float(torch.linalg.vecdot(change @ hessian.to(change.device), change).double().sum())
