"""Group-wise optimal brain surgeon, computed the slow way: the reference of its tests."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.group_obs import GroupOBSPruner, eliminate
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian

ROWS, COLUMNS = 12, 24
DAMPING = 0.01


def problem(
    seed: int = 0, rows: int = ROWS, columns: int = COLUMNS, n_tokens: int = 400
) -> tuple[Tensor, Tensor]:
    inputs = draw_correlated_inputs(n_tokens, columns, seed=seed + 50)
    return draw_gaussian(rows, columns, seed=seed), inputs


def hessian_of(inputs: Tensor) -> Tensor:
    """The damped Hessian that the pruner sees, in float64."""
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))


def upper_of(hessian: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


def layer_errors(change: Tensor, hessian: Tensor) -> Tensor:
    """Of each row."""
    return ((change.double() @ hessian) * change.double()).sum(dim=1)


def ls_oracle(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The best weights with this mask: for each row, H_SS w_S = H_S,: w."""
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, out in zip(weight.double(), keep, best, strict=True):
        out[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
    return best


def trailing_refit(weight: Tensor, hessian: Tensor, gone: Tensor, start: int) -> Tensor:
    """Remove ``gone`` of the columns from ``start`` on; the rest there is the least squares."""
    stop = start + gone.shape[1]
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[:, start:stop] = ~gone
    settled = weight.double().clone()
    settled[:, start:] = ls_oracle(weight[:, start:], hessian[start:, start:], keep[:, start:])
    return settled


def naive_blocks(weight: Tensor, hessian: Tensor, count: int, width: int) -> Tensor:
    """The method in float64 by explicit inverses and one least squares a row; no factor."""
    weight, columns, done = weight.double(), weight.shape[1], 0
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        inverse = torch.linalg.inv(hessian[start:, start:]).diagonal()[: stop - start]
        saliency = weight[:, start:stop] ** 2 / inverse
        quota = count * stop // columns - done
        gone = torch.zeros(saliency.numel(), dtype=torch.bool)
        gone[saliency.flatten().argsort()[:quota]] = True
        weight = trailing_refit(weight, hessian, gone.view_as(saliency), start)
        done += quota
    return weight


def naive_groups(
    weight: Tensor, hessian: Tensor, shape: tuple[int, int], width: int, rule: str
) -> Tensor:
    """As `naive_blocks`, for groups; the joint loss of a subset is that of its least squares."""
    (keep, group), weight, columns = shape, weight.double(), weight.shape[1]
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        gone = torch.zeros(len(weight), stop - start, dtype=torch.bool)
        for first in range(start, stop, group):
            # Columns of the group go to the front, those of other groups may all move.
            rest = [j for j in range(start, columns) if not first <= j < first + group]
            order = [*range(first, first + group), *rest]
            part = hessian[order][:, order]
            losses = {}
            for subset in combinations(range(group), group - keep):
                mask = torch.zeros(len(weight), len(order), dtype=torch.bool)
                mask[:, list(subset)] = True
                refit = ls_oracle(weight[:, order], part, ~mask)
                losses[subset] = layer_errors(refit - weight[:, order], part)
            if rule == "single":
                singles = weight[:, order][:, :group] ** 2
                singles = singles / torch.linalg.inv(part).diagonal()[:group]
                losses = {s: singles[:, list(s)].sum(1) for s in losses}
            best = torch.stack(list(losses.values())).argmin(dim=0)
            for row, index in enumerate(best):
                gone[row, [first - start + j for j in list(losses)[int(index)]]] = True
        weight = trailing_refit(weight, hessian, gone, start)
    return weight


def prune(
    weight: Tensor, inputs: Tensor, count: int, pruner: Pruner | None = None, seed: int = 0
) -> Tensor:
    known = build_evidence(inputs, Statistic.HESSIAN)
    return (pruner or GroupOBSPruner()).prune(weight, known, [count], seed=seed).at(weight, count)


def random_mask(seed: int = 3, share: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(ROWS, COLUMNS, generator=generator) < share


def eliminated(weight: Tensor, hessian: Tensor, gone: Tensor, width: int) -> Tensor:
    choose = lambda block: gone[:, block.columns]  # noqa: E731
    return eliminate(weight.double(), upper_of(hessian), choose, width).weights
