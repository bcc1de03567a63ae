"""First-order Taylor importance of whole units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsity_search.allocators.bases.depth import DEPTH, RemovalState, check_settings
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.gradients import compute_weight_gradients


@dataclass(frozen=True, kw_only=True)
class BlockTaylorAllocator(Allocator):
    """Removes units by rising ``Σ |w · g|`` over their weights; ``g`` is the loss's gradient.

    The Taylor+ criterion of Shortened LLaMA (Kim et al., arXiv 2402.02834). The gradient is the
    mean over sequences. The blocks at both ends, which the model needs most, are kept.

    Args:
        sequences: Calibration sequences to use; None for all. The paper uses 10.
        keep_first: Blocks at the beginning that go only when no other unit is left.
        keep_last: Blocks at the end that go only when no other unit is left.
    """

    units: ClassVar[tuple[str, ...]] = DEPTH
    experimental: ClassVar[str] = (
        "perplexity 41.2 without 3 of 30 blocks, where block_influence has 24.4 (SmolLM2-135M)"
    )

    sequences: int | None = None
    keep_first: int = 4
    keep_last: int = 2

    def __post_init__(self) -> None:
        check_settings(self.sequences, keep_first=self.keep_first, keep_last=self.keep_last)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile that removes the units of least importance.

        Raises:
            NumericalError: No importance is finite.
        """
        removal = RemovalState(problem, keep=(self.keep_first, self.keep_last))
        text = problem.tokens[: self.sequences]
        importances = compute_taylor_importances(problem.subject, text)
        return removal.by_score(dict(enumerate(importances)))


def compute_taylor_importances(subject: PrunableModel, tokens: Tensor) -> list[float]:
    """Return ``Σ |w · g|`` of each unit, in the layout's order.

    Args:
        subject: The model; unchanged afterwards.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
    """
    gradients = compute_weight_gradients(subject, tokens)
    return [
        float((subject.views[u.name].read().float().cpu() * gradients[u.name].mean).abs().sum())
        for u in subject.layout
    ]
