"""Perplexity without a unit: what the text needs least goes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_search.allocators.bases.depth import (
    DEPTH,
    RemovalLosses,
    RemovalState,
    check_settings,
)
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator


@dataclass(frozen=True, kw_only=True)
class BlockPerplexityAllocator(Allocator):
    """Removes units by rising perplexity of the dense model without each alone.

    The PPL criterion of Shortened LLaMA (Kim et al., arXiv 2402.02834). The units are ordered by
    the mean loss of a token; the order of the perplexities is the same.

    Args:
        sequences: Calibration sequences to use; None for all. The paper uses 10.
        keep_first: Blocks at the beginning that go only when no other unit is left.
        keep_last: Blocks at the end that go only when no other unit is left.
    """

    units: ClassVar[tuple[str, ...]] = DEPTH

    sequences: int | None = None
    keep_first: int = 0
    keep_last: int = 0

    def __post_init__(self) -> None:
        check_settings(self.sequences, keep_first=self.keep_first, keep_last=self.keep_last)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile that removes the units of least perplexity.

        Raises:
            NumericalError: No loss is finite.
        """
        removal = RemovalState(problem, keep=(self.keep_first, self.keep_last))
        losses = RemovalLosses(problem.subject, problem.tokens, self.sequences)
        return removal.by_score(losses.of(range(len(problem.layout))))
