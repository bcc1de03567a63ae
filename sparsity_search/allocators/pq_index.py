"""PQ index: units whose weights are more unequal can lose more of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.allocators.bases.thresholds import (
    keep_in_proportion,
    remove_in_proportion,
    soften_bounds,
)
from sparsity_search.errors import NumericalError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator

_SOLVED = ("gamma", "eta")


@dataclass(frozen=True, kw_only=True)
class PQIndexAllocator(Allocator):
    """Sparsity from the inequality of a unit's magnitudes, scaled to the budget.

    SAP (Diao et al., ICLR 2023, arXiv 2302.05601). A unit of ``d`` non-zero weights has the index
    ``I = 1 - d^(1/q - 1/p) ‖w‖_p / ‖w‖_q``, keeps the fraction
    ``r = (1 + η)^(-q / (q - p)) (1 - I)^(p q / (q - p))`` and loses ``min(γ (1 - r), cap)``.
    The paper prunes by this round after round with training between; here it is one round, with
    ``γ`` or ``η`` such that all units together meet the budget. Equal indices give the uniform
    profile.

    Attributes:
        p: Exponent of the norm above.
        q: Exponent of the norm below, larger than ``p``.
        solve: What meets the budget: ``gamma``, so what a unit loses is proportional to
            ``1 - r``; or ``eta`` with ``γ = 1``, so what it keeps is proportional to ``r``.
            Unlike in the paper, that may make ``η`` negative.
        eta: ``η``, where ``gamma`` is solved for.
        cap: Most of its non-zero weights that a unit loses. It gives way only where the budget
            cannot be met otherwise.
    """

    needs_text: ClassVar[bool] = False

    p: float = 0.5
    q: float = 1.0
    solve: str = "gamma"
    eta: float = 0.0
    cap: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.p < self.q:
            raise ValueError(f"p and q must have 0 < p < q, not {self.p} and {self.q}")
        if self.solve not in _SOLVED:
            raise ValueError(f"solve must be gamma or eta, not {self.solve!r}")
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0, not {self.eta}")
        if self.eta and self.solve == "eta":
            raise ValueError("eta is what is solved for: leave it out, or solve for gamma")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap must be in (0, 1], not {self.cap}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from the weights alone.

        Raises:
            NumericalError: A weight is not finite.
        """
        layout, n_removed = problem.layout, problem.n_removed
        weights = (problem.subject.views[unit.name].read() for unit in layout)
        indices = [compute_pq_index(weight, self.p, self.q) for weight in weights]
        kept = compute_kept_fraction(np.array(indices), self.p, self.q, self.eta)
        alive = layout.counts - layout.zeros
        limits = soften_bounds(layout, problem.bounds, layout.zeros + self.cap * alive, n_removed)
        if self.solve == "gamma":
            counts = remove_in_proportion(layout, alive * (1 - kept), limits, n_removed)
        else:
            counts = keep_in_proportion(layout, alive * kept, limits, n_removed)
        return np.asarray(counts / layout.counts)


def compute_pq_index(weight: Tensor, p: float, q: float) -> float:
    """Return the PQ index of a unit's non-zero weights, in [0, 1): 0 if all are equal or zero.

    Neither the scale of the weights nor repeating them changes it.

    Raises:
        NumericalError: A weight is not finite.

    >>> import torch
    >>> compute_pq_index(torch.tensor([3.0, -3.0, 3.0, 0.0]), 0.5, 1.0)
    0.0
    """
    if not bool(weight.isfinite().all()):
        raise NumericalError("the PQ index is not finite: a weight is NaN or Inf")
    alive = weight[weight != 0].double().abs()
    if not alive.numel():
        return 0.0
    alive /= alive.max()
    means = [float(alive.pow(e).mean()) ** (1 / e) for e in (p, q)]
    return float(max(0.0, 1 - means[0] / means[1]))


def compute_kept_fraction(index: np.ndarray, p: float, q: float, eta: float) -> np.ndarray:
    """Return the fraction of its non-zero weights that a unit should keep at least.

    >>> float(compute_kept_fraction(np.array([0.9375]), 0.5, 1.0, 0.0)[0])
    0.0625
    """
    return np.asarray((1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p)))
