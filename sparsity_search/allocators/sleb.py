"""SLEB: one unit after another, each the one that the model as it is then misses least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsity_search.allocators.bases.depth import (
    DEPTH,
    RemovalLosses,
    RemovalState,
    check_settings,
    find_least,
)
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel


@dataclass(frozen=True, kw_only=True)
class SLEBAllocator(Allocator):
    """Removes units one by one; each step takes the one without which the loss is least.

    SLEB (Song et al., arXiv 2402.09025). Unlike scores of the dense model, a step sees what
    earlier steps removed. It costs about half a forward pass of the text for each unit that is
    left: trying a removal runs only the blocks behind it.

    Args:
        sequences: Calibration sequences to use; None for all. The paper uses 128.
        barrier: Blocks at either end that go only when no other unit is left.
    """

    units: ClassVar[tuple[str, ...]] = DEPTH

    sequences: int | None = None
    barrier: int = 1

    def __post_init__(self) -> None:
        check_settings(self.sequences, barrier=self.barrier)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile that the greedy steps end with.

        Raises:
            NumericalError: In some step, no loss is finite.
        """
        subject = problem.subject
        removal = RemovalState(problem, keep=(self.barrier, self.barrier))
        losses = RemovalLosses(subject, problem.tokens, self.sequences)
        with subject.preserved():
            for position in removal.removed:
                _empty(subject, position)
            while candidates := removal.candidates():
                position = find_least(losses.of(candidates), candidates)
                removal.remove(position)
                _empty(subject, position)
        return removal.allocation()


def _empty(subject: PrunableModel, position: int) -> None:
    view = subject.views[subject.layout[position].name]
    view.write(torch.zeros_like(view.read()))
