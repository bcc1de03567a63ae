"""Pruners that change the weights they keep: what they share around their own mathematics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.masks import apply_mask
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.variants import StoredVariants
from sparsity_search.interfaces.pruner import Pruner, check_counts
from sparsity_search.registry import PRUNERS, plugin_field


class UpdatedWeight(NamedTuple):
    """A pruned weight; both ``(rows, columns)``: float32 values, and which are removed."""

    weights: Tensor
    removed: Tensor


@dataclass(frozen=True, kw_only=True)
class UpdatePruner(Pruner):
    """Minimises the layer error ``tr(Δ H Δᵀ)`` of the change ``Δ`` on the damped Hessian ``H``.

    Attributes:
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
    """

    updates: ClassVar[bool] = True

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise ConfigError(f"damping must lie in 0 … 1, not {self.damping}")

    @property
    def requires(self) -> Statistic:
        """The Hessian."""
        return Statistic.HESSIAN

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
        updates = self.update(weight, evidence, [table[i] for i in open_], seed) if open_ else ()
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

    @property
    def needs_following(self) -> bool:
        """Whether the mask's source needs it."""
        return self.mask is not None and self.mask.needs_following


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
