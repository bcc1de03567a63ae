"""ADMM: weights and mask that agree more and more, with one inverse for all iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks
from sparsity_search.pruners.bases.select import select_smallest, select_smallest_of_groups
from sparsity_search.pruners.bases.update import MaskedPruner, UpdatedWeight, compute_masks

#: Below this the inverse is not safe in float32; the scaled Hessian has unit diagonal.
_LEAST_RHO = 0.01

#: A key after all others.
_LAST = torch.iinfo(torch.int64).max

#: Scaled weights ``(rows, columns)`` and the step → which of them are removed from then on.
Choose = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class AdmmPruner(MaskedPruner):
    """Update by ADMM while the mask grows step by step (Boza 2024, arXiv 2401.02938).

    In units in which the Hessian ``G`` has unit diagonal, the weights ``V`` minimise the layer
    error, ``Z`` are those with the mask, and the dual ``U`` brings them together (section 3):
    ``Z = mask ∘ (V + U)``, ``U += V - Z``, ``V = (G + ρI)⁻¹ (G V₀ + ρ (Z - U))``. In the first
    ``schedule`` steps the mask is chosen anew, from ``|V + U|`` at sparsity
    ``s - s (1 - (t + 1) / schedule)³``; then it is fixed, and ``Z`` is the result.

    Attributes:
        damping: Added to the diagonal of the Hessian *scaled to unit diagonal*, as the paper
            does: a fraction of each input's own mean square.
        iterations: Steps in all.
        schedule: Steps in which the mask is chosen; 1 takes Wanda's at once.
        rho: Weight ``ρ`` of the constraint; one inverse serves all steps.
        pattern: Which weights compete: those of a ``layer`` or a ``row``, or N:M groups (``2:4``
            keeps 2 of 4). In groups the N largest of each are safe at every step, and the others
            compete over the layer until all of them are removed.
        mask: A pruner whose masks are taken as they are; then schedule and pattern have no effect.
    """

    damping: float = 0.1
    iterations: int = 20
    schedule: int = 15
    rho: float = 1.0
    pattern: str = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.schedule <= self.iterations:
            raise ConfigError(
                f"schedule must lie in 1 … iterations ({self.iterations}), not {self.schedule}"
            )
        if not _LEAST_RHO <= self.rho <= 1 / _LEAST_RHO:
            raise ConfigError(
                f"rho must lie in {_LEAST_RHO:g} … {1 / _LEAST_RHO:g}, not {self.rho}"
            )
        if Pattern.parse(self.pattern).scope == "block":
            raise ConfigError(f"admm's pattern must be layer, row or N:M, not {self.pattern!r}")

    def update(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterator[UpdatedWeight]:
        """Yield the weights of each count."""
        scale = _compute_scale(evidence.inputs).to(weight.device)
        dense = weight.float() * scale
        inverse = _compute_inverse(evidence.inputs, self.damping, self.rho).to(weight.device)
        for choose in self._choices(weight, evidence, counts, seed):
            moved, removed = self._iterate(dense, inverse, choose)
            # The change is rescaled, not the weights: what has not moved stays to the bit.
            yield UpdatedWeight(weight.float() + (moved - dense) / scale, removed)

    def _iterate(self, dense: Tensor, inverse: Tensor, choose: Choose) -> UpdatedWeight:
        """Return the last ``V + U`` and mask; all but ``inverse`` are ``(rows, columns)``."""
        total, removed = dense, torch.zeros_like(dense, dtype=torch.bool)
        for step in range(self.iterations):
            if step < self.schedule:
                removed = choose(total, step)
            # With Z the kept part of V + U, the dual is its removed part.
            dual = total * removed
            # As inverse @ G is I - rho · inverse, one product does it, and G itself is not needed.
            away = total - 2 * dual - dense
            total = torch.addmm(dense, away, inverse, alpha=self.rho) + dual
        return UpdatedWeight(total, removed)

    def _choices(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterator[Choose]:
        """Yield for each count how its weights are chosen."""
        if self.mask is not None:
            for removed in compute_masks(self.mask, weight, evidence, counts, seed):
                yield partial(_choose_given, removed)
            return
        pattern = Pattern.parse(self.pattern)
        pattern.check(weight.shape, counts)
        zero, ties = weight == 0, draw_tie_breaks(weight.shape, seed, weight.device)
        dead = evidence.inputs.norms().to(weight.device) == 0
        existing = int(zero.sum())

        def choose(count: int, total: Tensor, step: int) -> Tensor:
            keys = build_sort_keys(total.abs().masked_fill_(dead, 0), zero, ties)
            number = max(existing, compute_scheduled_count(count, step, self.schedule))
            if pattern.scope == "layer":
                return select_smallest(keys, number)
            if pattern.scope == "row":
                return _choose_smallest_of_rows(keys, zero.sum(dim=1), number)
            each = pattern.removed_in_group(count, weight.numel())
            unsafe = select_smallest_of_groups(keys, pattern.group, each)
            return select_smallest(keys.masked_fill_(~unsafe, _LAST), number)

        yield from (partial(choose, count) for count in counts)


def compute_scheduled_count(count: int, step: int, steps: int) -> int:
    """Return how many weights are removed from ``step`` on, if ``count`` are after ``steps``."""
    left = 1 - (step + 1) / steps
    return round(count * (1 - left**3))


def _choose_given(removed: Tensor, total: Tensor, step: int) -> Tensor:  # noqa: ARG001
    return removed


def _choose_smallest_of_rows(keys: Tensor, zeros: Tensor, number: int) -> Tensor:
    """Return a mask of the ``number`` entries that `compute_removal_order` has first in rows.

    Args:
        keys: ``(rows, columns)``, distinct.
        zeros: ``(rows,)``, how many entries of each row go before all others of the matrix.
        number: At least the sum of ``zeros``, fewer than all.
    """
    ordered = keys.sort(dim=1).values
    # Rows that lose another weight in round j; those with more zeros than that wait.
    losing = zeros[:, None] <= torch.arange(keys.shape[1], device=keys.device)
    spent = losing.sum(dim=0).cumsum(dim=0)
    rest = number - int(zeros.sum())
    rounds = int((spent <= rest).sum())
    rest -= int(spent[rounds - 1]) if rounds else 0
    last = ordered[:, rounds].masked_fill(~losing[:, rounds], _LAST)
    quotas = zeros.clamp_min(rounds) + select_smallest(last, rest)
    highest = ordered.gather(1, (quotas - 1).clamp_min(0)[:, None])
    return (keys <= highest) & (quotas > 0)[:, None]


def _compute_scale(inputs: InputStatistics) -> Tensor:
    """Return each input's root mean square, ``(n_inputs,)``; 1 for dead inputs."""
    norms = inputs.norms()
    return norms.masked_fill(norms == 0, 1)


def _compute_inverse(inputs: InputStatistics, damping: float, rho: float) -> Tensor:
    """Return ``(G + ρ I)⁻¹`` of the scaled and damped Hessian, once for all that read the inputs.

    The damping may be larger than asked for, and ``G`` diagonal, as the damping notes tell.
    """

    def make() -> Tensor:
        factor, matrix = inputs.inverse_factor(damping), inputs.damped_hessian(damping)
        scale = _compute_scale(inputs).to(matrix)
        matrix = matrix / scale / scale[:, None]
        matrix.diagonal().fill_(1 + factor.damping + rho)
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).float()

    return inputs.derived(("admm inverse", damping, rho), make)
