"""Block influence: what changes the direction of the hidden states least goes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsity_search.allocators.bases.depth import DEPTH, RemovalState, empty_units
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream, list_hidden


@dataclass(frozen=True, kw_only=True)
class BlockInfluenceAllocator(Allocator):
    """Removes units by rising influence ``1 - mean cos(x_before, x_after)`` of the dense model.

    The block influence of ShortGPT (Men et al., arXiv 2403.03853): the mean is over all tokens,
    ``x_before`` and ``x_after`` are the hidden states before and after a block. A sublayer is
    measured in the same way in the residual stream: after the attention, that is the output which
    the block has without its feed-forward.
    """

    units: ClassVar[tuple[str, ...]] = DEPTH

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile that removes the units of least influence.

        Raises:
            NumericalError: No influence is finite.
        """
        by_name = compute_influences(problem.subject, problem.tokens)
        scores = {i: by_name[unit.name] for i, unit in enumerate(problem.layout)}
        return RemovalState(problem).by_score(scores)


def compute_influences(subject: PrunableModel, tokens: Tensor) -> dict[str, float]:
    """Return the influence of every block or sublayer by name, also of excluded ones.

    Args:
        subject: The model; unchanged afterwards.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
    """
    # excluded units take part, too: without them the residual stream would not be complete
    every = PrunableModel(subject.model, units=subject.units, roles=subject.roles)
    runner = BlockRunner(every, tokens)
    hidden = runner.embed()
    found = {}
    for block in range(len(every.blocks)):
        before = hidden
        names = [unit.name for unit in every.units_of(block)]
        for name, after in zip(names, _run_stream(every, runner, block, before), strict=True):
            found[name] = 1 - compute_mean_cosine(list_hidden(hidden), list_hidden(after))
            hidden = after
    return found


def _run_stream(
    subject: PrunableModel, runner: BlockRunner, block: int, hidden: Sequence[Stream]
) -> Iterator[list[Stream]]:
    """Yield the residual stream after each unit of a block: the output without later ones."""
    names = [unit.name for unit in subject.units_of(block)]
    for place in range(1, len(names) + 1):
        with empty_units(subject, *names[place:]):
            after = runner.run(block, hidden)
        yield after


@torch.inference_mode()
def compute_mean_cosine(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the mean cosine of hidden states, token by token.

    Args:
        before: Batches of hidden states, ``(batch, length, hidden)`` each.
        after: The same number of them, of the same shapes.
    """
    cosines = [
        torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1).flatten()
        for x, y in zip(before, after, strict=True)
    ]
    return float(torch.cat(cosines).double().mean())
