"""ALPS: find the support by operator splitting, then solve for the weights that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks
from sparsity_search.pruners.bases.select import select_smallest, select_smallest_of_groups
from sparsity_search.pruners.bases.update import UpdatedWeight, UpdatePruner

#: The penalty's factor where the support changes by at least a share of its size (section 3.2).
_FACTORS = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
#: Until the support has once changed by this share, the penalty is divided instead.
_MOVING, _BACK_OFF = 0.005, 5.0
_SMALLEST_RHO, _LARGEST_RHO = 1e-6, 1e6
#: After so many iterations a support that changes by less than this share is final.
_SETTLE_AFTER, _SETTLED = 30, 3e-4

#: Weights ``(rows, columns)`` → which of them are removed: those of least magnitude.
Choose = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ALPSPruner(UpdatePruner):
    """ADMM for the support, then conjugate gradients (Meng et al. 2024, arXiv 2406.07831, §3).

    Inputs are scaled so that the damped Hessian ``H`` has a unit diagonal. ADMM alternates between
    the quadratic layer error, with a penalty ``ρ`` on the distance to a sparse copy ``D``, and
    the projection on the largest magnitudes, which gives ``D``. The penalty grows the faster the
    more the support of ``D`` still changes. Then the support is fixed, and conjugate gradients
    lower the error over the weights in it; the paper's diagonal preconditioner is the identity
    after the scaling. Each count is solved on its own; the eigenvectors of ``H`` serve all counts
    and all weights that read the same tensor.

    As in the authors' code, a support that hardly moves at the first checks means that ``ρ`` is
    too large (it is divided by 5), and one that hardly changes after 30 iterations is final.
    Zeros, then weights on dead inputs, go first.

    Attributes:
        rho: The first penalty, relative to the unit diagonal.
        iterations: Most ADMM iterations.
        check_every: ADMM iterations between two looks at the support, when ``ρ`` may change.
        pcg_iterations: Conjugate gradient iterations on the final support.
        pattern: ``layer``, or N:M groups: ``2:4`` keeps 2 of 4 consecutive inputs (or all of the
            unit), ``*:4`` as many as the count says.
    """

    rho: float = 0.1
    iterations: int = 300
    check_every: int = 3
    pcg_iterations: int = 10
    pattern: str = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _SMALLEST_RHO <= self.rho <= _LARGEST_RHO:
            bounds = f"{_SMALLEST_RHO:g} … {_LARGEST_RHO:g}"
            raise ConfigError(f"rho must lie in {bounds}, not {self.rho}")
        for name, least in (("iterations", 1), ("check_every", 1), ("pcg_iterations", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if Pattern.parse(self.pattern).scope not in ("layer", "group"):
            raise ConfigError(f"alps's pattern must be layer or N:M, not {self.pattern!r}")

    def update(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterator[UpdatedWeight]:
        """Yield the solution of each count."""
        pattern = Pattern.parse(self.pattern)
        pattern.check(weight.shape, counts)
        spectrum = compute_spectrum(evidence.inputs, self.damping).to(weight.device)
        weights = weight.float().contiguous()
        scaled = (weights * spectrum.scale).masked_fill_(spectrum.dead, 0)
        ties = draw_tie_breaks(weight.shape, seed, weight.device)
        for count in counts:
            choose = build_smallest_choice(pattern, count, weights == 0, ties)
            found = self.support(scaled, spectrum, choose)
            change = refit(
                found.weights - scaled, spectrum.hessian, found.removed, self.pcg_iterations
            )
            # Weights that do not move stay as they are, to the bit.
            yield UpdatedWeight(weights + change / spectrum.scale, found.removed)

    def support(self, scaled: Tensor, spectrum: Spectrum, choose: Choose) -> Support:
        """Return the support that ADMM finds, section 3.2 and algorithm 1.

        With the scaled dual ``U = V / ρ`` an iteration is, in this order,
        ``W = W₀ + (D - U - W₀) · ρ (H + ρ I)⁻¹``, ``D = project(W + U)``, ``U = U + W - D``.

        Args:
            scaled: ``(rows, columns)``, the dense weights ``W₀`` in the scaled space.
            spectrum: Spectrum of the scaled Hessian.
            choose: Function that finds the entries that the projection removes.
        """
        first = seen = choose(scaled)
        kept = scaled.numel() - int(first.sum())
        rho, moving = self.rho, False
        sparse, dual = scaled.masked_fill(first, 0), torch.zeros_like(scaled)
        smoother = spectrum.smoother(rho)
        for iteration in range(1, self.iterations + 1):
            weights = (sparse - dual).sub_(scaled).mm(smoother).add_(scaled)
            total = dual.add_(weights)
            removed = choose(total)
            sparse = total.masked_fill(removed, 0)
            dual = total.sub_(sparse)
            if iteration % self.check_every:
                continue
            changed, seen = int((removed ^ seen).sum()), removed
            moving |= changed >= _MOVING * kept
            settled = iteration > _SETTLE_AFTER and changed < _SETTLED * kept
            if settled or (moving and not changed):
                break
            if changed and not moving:
                sparse, dual = scaled.masked_fill(first, 0), torch.zeros_like(scaled)
            before, rho = rho, compute_next_rho(rho, changed / kept, moving)
            dual *= before / rho
            smoother = spectrum.smoother(rho)
        removed = choose(weights)
        return Support(weights.masked_fill_(removed, 0), removed, iteration)


class Support(NamedTuple):
    """Outcome of ADMM.

    Attributes:
        weights: ``(rows, columns)`` in the scaled space, zero where removed.
        removed: bool, of the same shape.
        iterations: How many it took.
    """

    weights: Tensor
    removed: Tensor
    iterations: int


def compute_next_rho(rho: float, share: float, moving: bool) -> float:
    """Return the next penalty.

    Args:
        rho: The penalty so far.
        share: Entries in which the support changed since the last check, over its size.
        moving: Whether there was a change to speak of at this check or an earlier one.
    """
    factor = next(factor for least, factor in _FACTORS if share >= least)
    rho = rho * factor if moving else rho / _BACK_OFF
    return min(max(rho, _SMALLEST_RHO), _LARGEST_RHO)


class Spectrum(NamedTuple):
    """A damped Hessian scaled to a unit diagonal, and its eigenvectors; all float32.

    Attributes:
        hessian: ``(columns, columns)``.
        values: ``(columns,)`` eigenvalues, not negative.
        vectors: ``(columns, columns)``, one eigenvector a column.
        scale: ``(columns,)``; a weight times this is the weight in the scaled space.
        dead: ``(columns,)`` bool, inputs that were always zero.
    """

    hessian: Tensor
    values: Tensor
    vectors: Tensor
    scale: Tensor
    dead: Tensor

    def to(self, device: torch.device) -> Spectrum:
        """Return it on ``device``."""
        return Spectrum._make(tensor.to(device) for tensor in self)

    def smoother(self, rho: float) -> Tensor:
        """Return ``ρ (H + ρ I)⁻¹``, ``(columns, columns)``."""
        return (self.vectors * (rho / (self.values + rho))) @ self.vectors.T


def compute_spectrum(inputs: InputStatistics, damping: float) -> Spectrum:
    """Return the spectrum of inputs, computed once for each damping."""
    return inputs.derived(("alps", damping), lambda: _decompose(inputs, damping))


def _decompose(inputs: InputStatistics, damping: float) -> Spectrum:
    hessian = inputs.damped_hessian(damping)
    dead = inputs.inverse_factor(damping).dead
    scale = hessian.diagonal().sqrt()
    hessian = hessian / scale / scale[:, None]
    values, vectors = torch.linalg.eigh(hessian)
    # A common factor has no effect, but keeps squares of scaled weights within float32.
    scale = scale / scale.mean()
    wide = (hessian, values.clamp_min(0), vectors, scale)
    return Spectrum._make([*(tensor.float() for tensor in wide), dead])


def build_smallest_choice(pattern: Pattern, count: int, zero: Tensor, ties: Tensor) -> Choose:
    """Return a function that finds the ``count`` entries of least magnitude, in the pattern.

    Args:
        pattern: All entries compete, or those of each group.
        count: Entries to remove: at least one in all (or in each group).
        zero: ``(rows, columns)`` bool, entries that go before all others (of their group).
        ties: Distinct integers of the same shape, which decide between equal magnitudes.
    """

    def choose(weights: Tensor) -> Tensor:
        keys = build_sort_keys(weights.abs(), zero, ties)
        if pattern.group:
            number = pattern.removed_in_group(count, zero.numel())
            return select_smallest_of_groups(keys, pattern.group, number)
        return select_smallest(keys, count)

    return choose


def refit(change: Tensor, hessian: Tensor, removed: Tensor, iterations: int) -> Tensor:
    """Return the change that lowers the layer error with these weights removed, section 3.3.

    Conjugate gradients on each row at once, over the kept weights.

    Args:
        change: ``(rows, columns)``, the change so far; what it is at removed weights stays.
        hessian: ``(columns, columns)``, unit diagonal.
        removed: ``(rows, columns)`` bool.
        iterations: At most so many.
    """
    residual = (change @ hessian).neg_().masked_fill_(removed, 0)
    direction, square = residual, _dot(residual, residual)
    for _ in range(iterations):
        curved = (direction @ hessian).masked_fill_(removed, 0)
        step = _divide(square, _dot(direction, curved))
        change = change + step * direction
        residual = residual - step * curved
        before, square = square, _dot(residual, residual)
        direction = residual + _divide(square, before) * direction
    return change


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=1, keepdim=True)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient; 0 for a row that is solved already."""
    return (numerator / denominator).nan_to_num(0.0, 0.0, 0.0)
