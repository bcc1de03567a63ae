"""In which order of its inputs a weight's N:M groups keep the most score.

The method is the channel permutation of "Plug-and-Play" (Zhang et al., ICLR 2024,
openreview.net/forum?id=Tr0lPx9woF), which comes with the RIA score. An order is a permutation of
the columns: the groups are ``M`` consecutive columns of ``score[:, order]``.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

#: Methods of channel permutation.
METHODS = ("heuristic", "assignment")


def find_channel_order(score: Tensor, keep: int, group: int, method: str) -> Tensor:
    """Return an order in which groups retain at least what they do in the given one.

    The retained score depends on the whole matrix, and the serpentine order looks at column sums
    only: where it retains less than the columns as they are, they stay as they are.

    Args:
        score: ``(rows, columns)``, finite, not negative; ``columns`` is a multiple of ``group``.
        keep: Entries that a group keeps.
        group: Columns of a group.
        method: One of `METHODS`: the serpentine order, or that improved by `assign_columns`.
    """
    given = torch.arange(score.shape[1], device=score.device)
    start = max(
        given, build_serpentine(score, group), key=lambda o: sum_retained(score[:, o], keep, group)
    )
    return assign_columns(score, start, keep, group) if method == "assignment" else start


def sum_retained(score: Tensor, keep: int, group: int) -> float:
    """Return the sum of the ``keep`` largest scores of all groups of consecutive columns."""
    return float(score.double().reshape(-1, group).topk(keep, dim=1).values.sum())


def build_serpentine(score: Tensor, group: int) -> Tensor:
    """Return the order that spreads strong columns over the groups, ``(columns,)``.

    Columns are sorted by their sum, ascending, and cut into ``group`` equal chunks. A chunk
    supplies one position of every group, every second chunk backwards: the group that gets the
    weakest of one chunk gets the strongest of the next.
    """
    chunks = score.double().sum(dim=0).argsort(stable=True).view(group, -1)
    chunks[1::2] = chunks[1::2].flip(dims=(1,))
    return chunks.T.flatten()


def assign_columns(score: Tensor, order: Tensor, keep: int, group: int) -> Tensor:
    """Return ``order`` with the columns at each position reassigned to groups at their best.

    One round: for each position in turn the other columns of all groups stay, and those at this
    position are dealt out anew by a linear sum assignment. No order of them retains more, and
    the one before is among them, so that the retained score never falls.

    Args:
        score: ``(rows, columns)``.
        order: Permutation of the columns to start from.
        keep: Entries that a group keeps.
        group: Columns of a group.
    """
    wide, slots = score.double(), order.view(-1, group).clone()
    for position in range(group):
        slots[:, position] = deal_columns(wide, slots, position, keep)
    return slots.flatten()


def deal_columns(score: Tensor, slots: Tensor, position: int, keep: int) -> Tensor:
    """Return the columns at one position of all groups, in the order that retains most.

    With ``t`` the ``keep``-th largest score of the other columns of a group, a column of score
    ``x`` makes the group retain ``max(t, x)`` and what is above ``t``. As ``2 max(t, x) = t + x +
    |t - x|`` and the sums of ``t`` and ``x`` are the same in all assignments, the best one has
    the largest sum of distances ``‖t - x‖₁`` over rows.

    Args:
        score: ``(rows, columns)`` float64.
        slots: ``(groups, group)``, the columns of each group.
        position: Which column of each group is dealt out anew.
        keep: Entries that a group keeps.
    """
    current = slots[:, position]
    others = torch.cat([slots[:, :position], slots[:, position + 1 :]], dim=1)
    if not 0 < keep <= others.shape[1]:  # a group keeps none, or all
        return current
    bars = score[:, others].topk(keep, dim=2).values[:, :, -1]
    gains = torch.cdist(bars.T, score[:, current].T, p=1)
    best = linear_sum_assignment(gains.cpu().numpy(), maximize=True)[1]
    return current[torch.from_numpy(best).to(current.device)]
