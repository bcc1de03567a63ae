"""Pruners that change the weights they keep: what they share around their own mathematics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.masks import apply_mask
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.variants import StoredVariants
from sparsity_search.interfaces.pruner import Pruner, check_counts
from sparsity_search.registry import PRUNERS, plugin_field

#: Damping of the change of weights towards the dense model's outputs.
_RIDGE = 0.01


class UpdatedWeight(NamedTuple):
    """A pruned weight; both ``(rows, columns)``: float32 values, and which are removed."""

    weights: Tensor
    removed: Tensor


@dataclass(frozen=True, kw_only=True)
class UpdatePruner(Pruner):
    """Minimises the layer error ``tr(Δ H Δᵀ)`` of the change ``Δ`` on the damped Hessian ``H``.

    Attributes:
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
        target: The outputs that pruned weights should have, where a model is pruned block by
            block: those of the dense weights for the ``pruned`` model's inputs, or for the
            ``dense`` model's, so that a layer makes up for those before it.
    """

    updates: ClassVar[bool] = True

    damping: float = 0.01
    target: Literal["pruned", "dense"] = "pruned"

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise ConfigError(f"damping must lie in 0 … 1, not {self.damping}")

    @property
    def requires(self) -> Statistic:
        """The Hessian."""
        return Statistic.HESSIAN

    @property
    def needs_dense_inputs(self) -> bool:
        """Whether the target is of the dense model."""
        return self.target == "dense"

    @abstractmethod
    def update(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterable[UpdatedWeight]:
        """Return one update for each count, in order.

        Args:
            weight: ``(rows, columns)``, in its own dtype.
            evidence: What is known of the weight.
            counts: Numbers of zeros: more than there are already, fewer than all.
            seed: Decides between equal scores.
        """

    @torch.no_grad()
    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> StoredVariants:
        """Return pruned and updated weights, see `Pruner.prune`."""
        table = check_counts(counts, weight)
        if not weight.isfinite().all():
            raise NumericalError("the weight has NaN or Inf entries")
        notes = format_damping_notes(evidence.inputs, self.damping)
        variants = weight.expand(len(table), *weight.shape).clone()
        existing = int((weight == 0).sum())
        open_ = [i for i, count in enumerate(table) if existing < count < weight.numel()]
        if table and table[-1] == weight.numel():
            variants[-1] = 0
        aim = weight
        if open_ and self.target == "dense" and evidence.cross is not None:
            aim = aim_at_dense(weight, evidence.inputs, evidence.cross)
        updates = self.update(aim, evidence, [table[i] for i in open_], seed) if open_ else ()
        for i, updated in zip(open_, updates, strict=True):
            variants[i] = cast_weights(updated, weight.dtype)
        # a sum is quick, and finite if all are
        if not variants.sum(dtype=torch.float64).isfinite() and not variants.isfinite().all():
            raise NumericalError(f"updated weights leave the range of {weight.dtype}")
        return StoredVariants.of(variants.unbind(), table, notes)


@dataclass(frozen=True, kw_only=True)
class MaskedPruner(UpdatePruner):
    """An update that chooses its own mask, or takes another pruner's.

    Attributes:
        mask: A pruner whose masks are taken as they are; None chooses.
    """

    mask: Pruner | None = plugin_field(PRUNERS, None)

    @property
    def needs_gradient(self) -> bool:
        """Whether the mask's source needs it."""
        return self.mask is not None and self.mask.needs_gradient


def aim_at_dense(weight: Tensor, inputs: InputStatistics, cross: Tensor) -> Tensor:
    """Return the weights whose outputs for the pruned model's inputs are nearest to the dense.

    With ``x̃`` the dense model's inputs and ``x`` the pruned model's, they minimise
    ``E‖W' x - W x̃‖² + λ ‖W' - W‖²``: ``W' = (W C + λ W) (H + λ I)⁻¹`` with ``C = E x̃ xᵀ``
    (DuoGPT, arXiv 2506.20194, section 3; GPTAQ, arXiv 2504.02692). All solvers then run on
    ``W'`` as they do on ``W``. Zeros, and weights on inputs that are always zero, stay.

    Args:
        weight: ``(rows, columns)``.
        inputs: Statistics of ``x``.
        cross: ``C``, ``(columns, columns)``.

    Returns:
        ``(rows, columns)`` float32.
    """
    hessian = inputs.damped_hessian(_RIDGE)
    dense, products = weight.to(hessian), cross.to(hessian)
    plain = inputs.hessian().to(hessian)
    factor = torch.linalg.cholesky(hessian)
    change = torch.cholesky_solve((products - plain).T @ dense.T, factor).T
    aimed = (dense + change).float().to(weight.device)
    dead = (inputs.norms() == 0).to(weight.device)
    return torch.where((weight == 0) | dead, weight.float(), aimed)


def cast_weights(updated: UpdatedWeight, dtype: torch.dtype) -> Tensor:
    """Return updated weights in ``dtype``, with zeros exactly where weights are removed."""
    cast = updated.weights.to(dtype)
    # A kept weight that rounds to zero would make one zero too many.
    kept, zero = ~updated.removed, cast == 0
    if bool((zero & kept).any()):
        cast = cast.masked_fill(zero, torch.finfo(dtype).tiny)
    return apply_mask(cast, kept)


def compute_masks(
    source: Pruner, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
) -> list[Tensor]:
    """Return the weights that a mask source removes at each count, ``(rows, columns)`` bool."""
    variants = source.prune(weight, evidence, counts, seed=seed)
    return [variants.at(weight, count) == 0 for count in counts]


def format_damping_notes(inputs: InputStatistics, damping: float) -> tuple[str, ...]:
    """Return a note if the Hessian needed more damping than was asked for."""
    factor = inputs.inverse_factor(damping)
    if factor.fallback:
        return ("the Hessian cannot be factorised: its diagonal was used",)
    if factor.damping != damping:
        return (f"damping raised from {damping:g} to {factor.damping:g}",)
    return ()
