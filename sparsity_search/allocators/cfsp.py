"""CFSP's coarse step: blocks that turn the hidden states more keep more weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sparsity_search.allocators.bases.hidden import block_sizes, check_divisible, mean_angle
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile

#: The released code sums angles over 128 sequences of 1024 tokens, and divides by 1e4.
_TOKENS = 128 * 1024 / 1e4
#: Its margin below density 1.
_MARGIN = 1.05


@dataclass(frozen=True, kw_only=True)
class CFSPAllocator(Allocator):
    """Densities follow how far blocks turn the hidden states: the coarse step of CFSP.

    CFSP (Wang et al., COLING 2025, arXiv 2409.13199). The importance ``I_b`` of a block is the
    mean angle between a token's hidden states before and after it, over pi. Densities are
    ``(1 - S) σ_b / mean(σ)`` with ``σ_b = sigmoid(contrast · 13.1072 · (I_b - mean I))`` and
    target ``S``. Where one would reach 1, all move towards their mean so that the greatest is
    ``1 - S + S / 1.05``. Equal importance gives the uniform profile.

    The released code sums angles over tokens where this takes their mean, so that its contrast
    grows with the text; 13.1072 is its factor at its own 128 sequences of 1024 tokens. It prunes
    feed-forward channels alone. Here all units of a block share its sparsity, and means over
    densities count weights.

    Args:
        contrast: How much the importance matters (``a`` in the released code); 0 is uniform.
    """

    contrast: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.contrast) and self.contrast >= 0):
            raise ConfigError(f"contrast must be at least 0, not {self.contrast}")

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the profile from one pass of ``tokens`` through the dense model.

        Raises:
            ConfigError: The units go as a whole or stay.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
            NumericalError: Hidden states are not finite.
        """
        layout = subject.layout
        check_divisible(layout, "cfsp")
        budget.check(layout, bounds)
        sizes = block_sizes(layout)
        found = importances(subject, tokens)
        importance = np.array([found[block] for block in sizes])
        densities = block_densities(
            self.contrast * importance, np.array(list(sizes.values())), budget.target
        )
        of_block = dict(zip(sizes, densities, strict=True))
        wanted = np.array([1 - of_block[unit.block] for unit in layout])
        return budget.project(layout, wanted, bounds)


def importances(subject: PrunableModel, tokens: Tensor) -> list[float]:
    """Return the mean angle over pi by which each block turns the hidden states.

    Raises:
        NumericalError: One is not finite.
    """
    runner = BlockRunner(subject, tokens)
    hidden = runner.embed()
    found = []
    for block in range(len(subject.blocks)):
        before, hidden = hidden, runner.run(block, hidden)
        found.append(mean_angle(before, hidden))
    if not np.isfinite(found).all():
        raise NumericalError("hidden states are not finite: the model's weights are too large")
    return found


def block_densities(importance: np.ndarray, sizes: np.ndarray, target: float) -> np.ndarray:
    """Return densities whose mean over weights is ``1 - target``, none of them 1.

    Args:
        importance: Of each block, times the contrast, ``(n_blocks,)``.
        sizes: Weights of each block, ``(n_blocks,)``.
        target: Sparsity to meet.

    >>> block_densities(np.array([0.2, 0.2]), np.array([1, 3]), 0.7).round(6).tolist()
    [0.3, 0.3]
    """
    sigmoids = (1 + np.tanh(_TOKENS * (importance - importance.mean()) / 2)) / 2
    relative = sigmoids / np.average(sigmoids, weights=sizes)
    greatest, dense = relative.max(), 1 / (1 - target)
    if greatest >= dense:
        relative = 1 + (relative - 1) * (dense - 1) / ((greatest - 1) * _MARGIN)
    return np.asarray((1 - target) * relative)
