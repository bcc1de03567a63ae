"""CFSP's coarse step: blocks that turn the hidden states more keep more weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.allocators.bases.blocks import block_sizes
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import list_hidden

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

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "experts")

    contrast: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.contrast) and self.contrast >= 0):
            raise ConfigError(f"contrast must be at least 0, not {self.contrast}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from one pass of the text through the dense model.

        Raises:
            NumericalError: Hidden states are not finite.
        """
        sizes = block_sizes(problem.layout)
        turns = compute_importances(problem.subject, problem.tokens)
        importance = np.array([turns[block] for block in sizes])
        densities = compute_block_densities(
            self.contrast * importance, np.array(list(sizes.values())), problem.target
        )
        of_block = dict(zip(sizes, densities, strict=True))
        return np.array([1 - of_block[unit.block] for unit in problem.layout])


def compute_importances(subject: PrunableModel, tokens: Tensor) -> list[float]:
    """Return the mean angle over pi by which each block turns the hidden states.

    Raises:
        NumericalError: One is not finite.
    """
    runner = BlockRunner(subject, tokens)
    hidden = runner.embed()
    found = []
    for block in range(len(subject.blocks)):
        before, hidden = hidden, runner.run(block, hidden)
        found.append(mean_angle(list_hidden(before), list_hidden(hidden)))
    if not np.isfinite(found).all():
        raise NumericalError("hidden states are not finite: the model's weights are too large")
    return found


@torch.inference_mode()
def mean_angle(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the mean angle between hidden states over pi, token by token: 0 to 1.

    By ``2 atan2(|u - v|, |u + v|)`` of unit vectors, which unlike an arc cosine is exact for
    small angles in float32. A zero vector is at a right angle to every other, and at none to
    another zero.

    Args:
        before: Batches of hidden states, ``(batch, length, hidden)`` each.
        after: The same number of them, of the same shapes.
    """
    total, count = 0.0, 0
    for old, new in zip(before, after, strict=True):
        u, v = (torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-30) for x in (old, new))
        halves = torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
        total += float(halves.double().sum())
        count += halves.numel()
    return 2 * total / (torch.pi * count)


def compute_block_densities(
    importance: np.ndarray, sizes: np.ndarray, target: float
) -> np.ndarray:
    """Return densities whose mean over weights is ``1 - target``, none of them 1.

    Args:
        importance: Of each block, times the contrast, ``(n_blocks,)``.
        sizes: Weights of each block, ``(n_blocks,)``.
        target: Sparsity to meet.

    >>> compute_block_densities(np.array([0.2, 0.2]), np.array([1, 3]), 0.7).round(6).tolist()
    [0.3, 0.3]
    """
    sigmoids = (1 + np.tanh(_TOKENS * (importance - importance.mean()) / 2)) / 2
    relative = sigmoids / np.average(sigmoids, weights=sizes)
    greatest, dense = relative.max(), 1 / (1 - target)
    if greatest >= dense:
        relative = 1 + (relative - 1) * (dense - 1) / ((greatest - 1) * _MARGIN)
    return np.asarray((1 - target) * relative)
