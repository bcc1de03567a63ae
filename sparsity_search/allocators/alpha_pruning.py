"""AlphaPruning: blocks whose weight spectra have heavier tails keep more weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.allocators.bases.rescale import check_spread, rescale_values
from sparsity_search.errors import NumericalError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.models.anatomy.views import WeightView

_TAILS = ("mid", "scan", "peak")
_PERS = ("block", "linear")
_BINS = 100
#: A flat tail has no exponent: the mean logarithm of its eigenvalues over the first is 0. It
#: counts as at least this, well above the rounding of float32 weights.
_LEAST_EXCESS = 1e-6


@dataclass(frozen=True, kw_only=True)
class AlphaPruningAllocator(Allocator):
    """Blocks whose weight spectra have heavier tails stay denser.

    AlphaPruning (Lu et al., NeurIPS 2024, arXiv 2410.10912). The tail of the eigenvalues of
    ``WᵀW`` gets the power law of Hill's estimator, see `fit_tail_exponent`. Exponents are scaled
    linearly to rates between ``1 - spread`` and ``1 + spread``, and sparsities are the rates
    times one factor such that the mean over all weights is the target. What exceeds the bounds
    (or 1) is shared by the others, by the budget's projection. Equal exponents give the uniform
    profile.

    With structures, a unit has the mean exponent of its linears.

    Attributes:
        tail: Where the tail begins. ``mid``: the larger half of the eigenvalues, the paper's
            PL_Alpha_Hill. ``scan``: where the Kolmogorov-Smirnov distance to the power law is
            least. ``peak``: the same near the peak of the spectrum, as the released scripts do.
        compat: Keep a fault of the released code in ``peak``: it compares eigenvalues with the
            *logarithm* of the lower end of their window.
        per: Whether the exponents of a ``block`` are averaged, or each ``linear`` has its own.
        spread: Half the range of the rates (τ in the paper, epsilon in the code).
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads")
    needs_text: ClassVar[bool] = False

    tail: str = "mid"
    compat: bool = False
    per: str = "block"
    spread: float = 0.3

    def __post_init__(self) -> None:
        if self.tail not in _TAILS:
            raise ValueError(f"tail must be one of {', '.join(_TAILS)}, not {self.tail!r}")
        if self.per not in _PERS:
            raise ValueError(f"per must be one of {', '.join(_PERS)}, not {self.per!r}")
        if self.compat and self.tail != "peak":
            raise ValueError("compat is about tail: peak only")
        check_spread(self.spread)

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from the weights alone.

        Raises:
            NumericalError: A weight is not finite.
        """
        layout = problem.layout
        alphas = np.array([self._exponent(problem.subject.views[u.name]) for u in layout])
        if self.per == "block":
            blocks = np.array([unit.block for unit in layout])
            alphas = np.array([_compute_mean(alphas[blocks == block]) for block in blocks])
        alphas = np.where(np.isnan(alphas), _compute_mean(alphas), alphas)
        sizes = layout.counts * layout.costs
        return scale_to_alphas(alphas, sizes, problem.target, self.spread)

    def _exponent(self, view: WeightView) -> float:
        """Return the mean exponent of a unit's matrices; NaN if none has one."""
        spectra = [compute_eigenvalues(matrix) for matrix in _read_matrices(view)]
        return _compute_mean(
            np.array([fit_tail_exponent(e, self.tail, self.compat) for e in spectra])
        )


def scale_to_alphas(
    alphas: np.ndarray, sizes: np.ndarray, target: float, spread: float
) -> np.ndarray:
    """Return sparsities that rise linearly with ``alphas``; some may exceed 1.

    The largest is ``(1 + spread) / (1 - spread)`` times the smallest; the mean is ``target``.

    Args:
        alphas: Exponent of each unit, ``(n_units,)``, finite.
        sizes: Weights of each unit, ``(n_units,)``.
        target: The mean sparsity, weighted by sizes.
        spread: Half the range of the rates.

    >>> scale_to_alphas(np.array([2.0, 4.0]), np.array([10, 10]), 0.5, 0.5).tolist()
    [0.25, 0.75]
    """
    rates = 1 - spread + rescale_values(alphas, spread)
    return np.asarray(rates * (target * sizes.sum() / (sizes @ rates)))


def compute_eigenvalues(weight: Tensor) -> np.ndarray:
    """Return the eigenvalues of ``WᵀW`` that are not zero, rising, float64.

    Those of the smaller Gram matrix, in float64: faster and more accurate than a singular value
    decomposition in float32.

    Raises:
        NumericalError: A weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise NumericalError("a spectrum is not finite: a weight is NaN or Inf")
    wide = (weight if weight.shape[0] <= weight.shape[1] else weight.T).double()
    found = torch.linalg.eigvalsh(wide @ wide.T).cpu().numpy()
    rounding = max(weight.shape) * np.finfo(np.float64).eps
    return np.asarray(found[found > rounding * found[-1]])


def fit_tail_exponent(spectrum: np.ndarray, tail: str = "mid", compat: bool = False) -> float:
    """Return the exponent of the power law that the tail of a spectrum follows.

    For a tail ``e_i ≤ … ≤ e_N`` of ``n`` values it is ``1 + n / (Σ ln e_k - n ln e_i)``.

    Args:
        spectrum: Positive eigenvalues in any order, ``(N,)``.
        tail: Where the tail begins, see `AlphaPruningAllocator`.
        compat: See `AlphaPruningAllocator`.

    Returns:
        The exponent, more than 1; NaN if there are fewer than two eigenvalues.
    """
    logs = np.log(np.sort(spectrum))
    if len(logs) < 2:
        return math.nan
    alphas = _fit_exponents(logs)
    if tail == "mid":
        return float(alphas[min(len(logs) // 2, len(alphas) - 1)])
    starts = np.arange(len(alphas)) if tail == "scan" else _find_peak(logs, compat)
    distances = [_compute_distance(logs[start:], alphas[start]) for start in starts]
    return float(alphas[starts[int(np.argmin(distances))]])


def _fit_exponents(logs: np.ndarray) -> np.ndarray:
    """Return the exponents of the tails from each but the last of the rising logarithms on."""
    sizes = np.arange(len(logs), 0, -1)
    excess = logs[::-1].cumsum()[::-1] / sizes - logs
    return np.asarray(1 + 1 / np.maximum(excess[:-1], _LEAST_EXCESS))


def _compute_distance(logs: np.ndarray, alpha: float) -> float:
    """Return the Kolmogorov-Smirnov distance of a tail to its power law."""
    law = 1 - np.exp((1 - alpha) * (logs - logs[0]))
    return float(np.abs(law - np.arange(len(logs)) / len(logs)).max())


def _find_peak(logs: np.ndarray, compat: bool) -> np.ndarray:
    """Return which eigenvalues but the last lie near the peak of their histogram.

    The peak is the left edge of the fullest of 100 bins of their logarithms. If none lies near
    it, all do.
    """
    counts, edges = np.histogram(logs / math.log(10), bins=_BINS)
    peak = 10.0 ** edges[counts.argmax()]
    lowest = math.log10(0.95 * peak) if compat else 0.95 * peak
    values = np.exp(logs[:-1])
    near = np.flatnonzero((values >= lowest) & (values <= 1.5 * peak))
    return near if len(near) else np.arange(len(values))


def _read_matrices(view: WeightView) -> Sequence[Tensor]:
    """Return the weights of a unit's linear layers."""
    if view.structures is None:
        return [view.read()]
    return [parameter.detach() for parameter in view.parameters()]


def _compute_mean(values: np.ndarray) -> float:
    """Return the mean of those that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
