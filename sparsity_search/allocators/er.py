"""Erdős-Rényi densities: small and narrow layers stay denser, whatever their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsity_search.allocators.bases.thresholds import keep_in_proportion
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator


@dataclass(frozen=True, kw_only=True)
class ERAllocator(Allocator):
    """Erdős-Rényi: each linear keeps weights in proportion to its inputs plus outputs.

    Sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780) takes such random graphs.
    ERK, the kernel variant (Evci et al., ICML 2020, arXiv 1911.11134), adds the sizes of a
    convolution's kernel; a linear has none, so the two are the same here. Linears whose share
    exceeds what they hold, or their bounds, stay there, and the others share the rest. Linears
    of one shape get one sparsity.
    """

    needs_text: ClassVar[bool] = False
    experimental: ClassVar[str] = (
        "perplexity at 70% 1.64 times that of uniform with SparseGPT, 9.01 times with Wanda "
        "(SmolLM2-135M)"
    )

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from the shapes alone."""
        layout, views = problem.layout, problem.subject.views
        sides = np.array([sum(views[unit.name].read().shape) for unit in layout])
        counts = keep_in_proportion(layout, sides, problem.bounds, problem.n_removed)
        return np.asarray(counts / layout.counts)
