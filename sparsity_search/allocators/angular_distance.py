"""Angular distance: the run of blocks whose two ends are most alike goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsity_search.allocators.bases.depth import RemovalState, find_least
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import list_hidden
from sparsity_search.profiles.layout import Layout


@dataclass(frozen=True, kw_only=True)
class AngularDistanceAllocator(Allocator):
    """Removes the run of blocks with the least angle between its input and its output.

    Gromov et al. (arXiv 2403.17887): the angle of a run of ``n`` blocks from block ``l`` on is
    ``arccos(cos(x_l, x_{l+n})) / pi`` at the last token, averaged over sequences; ``x_l`` are the
    hidden states before block ``l``. The run is as long as the budget allows. Where the bounds
    leave no run so long, the longest goes that there is, and then the longest of what is left.
    """

    units: ClassVar[tuple[str, ...]] = ("blocks",)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile that removes the best run.

        Raises:
            NumericalError: No distance is finite.
        """
        layout, removal = problem.layout, RemovalState(problem)
        distances = compute_angular_distances(problem.subject, problem.tokens)
        while candidates := removal.candidates():
            runs = _find_runs(layout, candidates, removal)
            most = max(_compute_cost(layout, run) for run in runs.values())
            longest = [ends for ends, run in runs.items() if _compute_cost(layout, run) == most]
            scores = {i: float(distances[ends]) for i, ends in enumerate(longest)}
            for position in runs[longest[find_least(scores, scores)]]:
                removal.remove(position)
        return removal.allocation()


def _compute_cost(layout: Layout, positions: list[int]) -> int:
    return int(layout.costs[positions].sum())


def _find_runs(
    layout: Layout, candidates: list[int], removal: RemovalState
) -> dict[tuple[int, int], list[int]]:
    """Return the units that each run of blocks would newly remove within the budget, by its ends.

    Blocks that are removed already do not interrupt a run.
    """
    new = {layout[i].block: [i] for i in candidates}
    gone: dict[int, list[int]] = {layout[i].block: [] for i in removal.removed}
    known = new | gone
    found = {}
    for start in known:
        stop, run = start, list[int]()
        while stop in known and _compute_cost(layout, run := run + known[stop]) <= removal.left:
            stop += 1
            if run:
                found[start, stop] = run
    return dict(sorted(found.items()))


@torch.inference_mode()
def compute_angular_distances(subject: PrunableModel, tokens: Tensor) -> Tensor:
    """Return the mean angle between the hidden states before any two blocks, over pi.

    Args:
        subject: The model.
        tokens: Calibration text, ``(n_sequences, length)`` int64.

    Returns:
        ``(n_blocks + 1, n_blocks + 1)`` float64 within [0, 1]; the last index means the output of
        the last block.
    """
    runner = BlockRunner(subject, tokens)
    hidden = runner.embed()
    last = [_select_last_token(list_hidden(hidden))]
    for block in range(len(subject.blocks)):
        hidden = runner.run(block, hidden)
        last.append(_select_last_token(list_hidden(hidden)))
    states = torch.nn.functional.normalize(torch.stack(last), dim=-1)
    cosines = torch.einsum("ash,bsh->abs", states, states).clamp(-1, 1)
    return (cosines.arccos() / torch.pi).mean(dim=-1)


def _select_last_token(hidden: list[Tensor]) -> Tensor:
    """Return the hidden states of each sequence's last token, ``(n_sequences, hidden)``."""
    return torch.cat([states[:, -1].double().cpu() for states in hidden])
