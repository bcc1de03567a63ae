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
        towards_dense: Weight of the dense model's outputs in what the layer should put out, where
            a model is pruned layer by layer. The rest is of the dense weights' outputs for the
            pruned model's inputs, the only target of most papers (0). With 1, as in DuoGPT,
            layers make up for all that was lost before them.
    """

    updates: ClassVar[bool] = True

    damping: float = 0.01
    towards_dense: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.towards_dense <= 1:
            raise ConfigError(f"towards_dense must lie in 0 … 1, not {self.towards_dense}")
        if not 0 <= self.damping <= 1:
            raise ConfigError(f"damping must lie in 0 … 1, not {self.damping}")

    @property
    def requires(self) -> Statistic:
        """The Hessian."""
        return Statistic.HESSIAN

    @property
    def needs_dense_inputs(self) -> bool:
        """Whether the dense model's outputs are part of the target."""
        return self.towards_dense > 0

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
        aim = self._aim(weight, evidence) if open_ and self.towards_dense else weight
        updates = self.update(aim, evidence, [table[i] for i in open_], seed) if open_ else ()
        for i, updated in zip(open_, updates, strict=True):
            variants[i] = cast_weights(updated, weight.dtype)
        # a sum is quick, and finite if all are
        if not variants.sum(dtype=torch.float64).isfinite() and not variants.isfinite().all():
            raise NumericalError(f"updated weights leave the range of {weight.dtype}")
        return StoredVariants.of(variants.unbind(), table, notes)

    def _aim(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return the weights that a unit without zeros should have."""
        change = compute_dense_step(weight, evidence.inputs, self.damping)
        return weight if change is None else weight.float() + self.towards_dense * change


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


def compute_dense_step(weight: Tensor, inputs: InputStatistics, damping: float) -> Tensor | None:
    """Return the change of a weight that brings its outputs nearest to the dense model's.

    With ``x̃`` the dense model's inputs and ``x`` the pruned model's, ``W' = W + Δ`` minimises
    ``E‖W' x - W x̃‖² + λ ‖Δ‖²``: ``Δ = W (C - H) (H + λ I)⁻¹`` with ``C = E x̃ xᵀ`` (DuoGPT, arXiv
    2506.20194, section 3; GPTAQ, arXiv 2504.02692). A part ``t`` of the step minimises the mean of
    this error and of ``E‖W' x - W x‖²`` with weights ``t`` and ``1 - t``. Whole steps shrink what
    cannot be foretold from the pruned inputs, layer after layer.

    Zeros, and weights on inputs that are always zero, stay.

    Args:
        weight: ``W``, ``(rows, columns)``.
        inputs: Statistics of ``x``, with ``C`` if the dense model's inputs are known.
        damping: ``λ`` as a fraction of the mean of the Hessian's diagonal.

    Returns:
        ``(rows, columns)`` float32; None without the dense model's inputs.
    """
    cross = inputs.cross()
    if cross is None:
        return None
    factor = inputs.inverse_factor(damping)

    def solve() -> Tensor:
        return (cross - inputs.hessian()) @ factor.upper.T @ factor.upper

    step = weight.float() @ inputs.derived(("dense step", damping), solve).to(weight.device)
    return step.masked_fill((weight == 0) | factor.dead.to(weight.device), 0)


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
