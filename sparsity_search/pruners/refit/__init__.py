"""The exact least-squares weights of a mask that another pruner chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.bases.update import UpdatedWeight, UpdatePruner, compute_masks
from sparsity_search.pruners.refit.least_squares import (
    UnitHessian,
    compute_unit_hessian,
    solve_least_squares,
)
from sparsity_search.registry import PRUNERS, plugin_field


@dataclass(frozen=True, kw_only=True)
class RefitPruner(UpdatePruner):
    """Take another pruner's mask, and the weights that are best with it: least squares.

    For each row that keeps the inputs ``S``, ``w_S = H_SS⁻¹ (H w)_S``: no weights with that mask
    have a smaller layer error. Optimal brain surgeon comes to the same if it removes all at once
    (Kurtic et al. 2022, arXiv 2203.07259). Solved by conjugate gradients for all rows together,
    with diagonal preconditioning, as ALPS does (Meng et al. 2024, arXiv 2406.07831).

    Attributes:
        mask: The pruner whose masks are taken; what it does to the weights is not.
        iterations: Most steps of conjugate gradients.
        tolerance: A row is solved when its residual is this fraction of that of the masked
            weights. How far the layer error is above its minimum goes with the square of it, and
            with the condition number of the Hessian scaled to unit diagonal: of 2e5, about 1e-5.
    """

    mask: Pruner = plugin_field(PRUNERS, "wanda")
    iterations: int = 500
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ConfigError(f"iterations must be at least 1, not {self.iterations}")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance must lie between 0 and 1, not {self.tolerance}")

    @property
    def needs_gradient(self) -> bool:
        """Whether the mask's source needs it."""
        return self.mask.needs_gradient

    @property
    def needs_following(self) -> bool:
        """Whether the mask's source needs it."""
        return self.mask.needs_following

    def update(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterator[UpdatedWeight]:
        """Yield the least-squares weights of each count."""
        dense = weight.float()
        found = compute_unit_hessian(evidence.inputs, self.damping)
        hessian = UnitHessian(*(part.to(weight.device) for part in found))
        for removed in compute_masks(self.mask, weight, evidence, counts, seed):
            weights = solve_least_squares(dense, removed, hessian, self.iterations, self.tolerance)
            yield UpdatedWeight(weights, removed)
