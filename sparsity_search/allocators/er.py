"""Erdős-Rényi densities: small and narrow layers stay denser, whatever their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.allocators.bases.thresholds import check_weights, kept_in_proportion
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile


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

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the profile from the shapes alone; ``tokens`` are not read.

        Raises:
            ConfigError: The units are structures.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
        del tokens
        layout = subject.layout
        budget.check(layout, bounds)
        check_weights(subject, "er")
        sides = np.array([sum(subject.views[unit.name].read().shape) for unit in layout])
        counts = kept_in_proportion(layout, sides, bounds, budget.n_removed(layout))
        return budget.project(layout, counts / layout.counts, bounds)
