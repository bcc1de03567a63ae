"""Group OBS: remove many weights of a row at once, with their joint compensation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks
from sparsity_search.pruners.bases.quotas import compute_block_quotas
from sparsity_search.pruners.bases.select import select_smallest, select_smallest_of_groups
from sparsity_search.pruners.bases.update import MaskedPruner, UpdatedWeight, compute_masks
from sparsity_search.pruners.group_obs.subsets import choose_cheapest_subset

#: Bound on the systems of the rows that are solved together; larger ones leave the cache.
_SOLVE_BYTES = 2**22

#: Bound on the subsets of an N:M group that are compared: groups of up to 10.
_MOST_SUBSETS = 256


class ColumnBlock(NamedTuple):
    """Some columns to choose from, after those before them are settled.

    Attributes:
        weights: ``(rows, width)``, as the blocks before have left them.
        inverse: ``(width, width)`` float64, the part of ``(H[start:, start:])⁻¹`` on the block.
        columns: Where the block lies.
        number: How many blocks are before it.
    """

    weights: Tensor
    inverse: Tensor
    columns: slice
    number: int


#: Which weights of a block are removed, ``(rows, width)`` bool.
Choose = Callable[[ColumnBlock], Tensor]


@dataclass(frozen=True, kw_only=True)
class GroupOBSPruner(MaskedPruner):
    """Remove a row's weights jointly, block by block (APT, Zhao et al. 2024, arXiv 2410.15567).

    For a block of columns from ``a`` on, with ``A = (H[a:, a:])⁻¹``, a row that loses the set
    ``P`` moves by ``-w_P (A_PP)⁻¹ A_P,:``: the best change of all columns from ``a`` on, at the
    damped error ``w_P (A_PP)⁻¹ w_Pᵀ``. The columns of the block then stay as they are. Blocks of
    one column are SparseGPT's sweep; one block of all columns is the optimum for its mask.
    Thanos (arXiv 2504.05346) has the same blocked form.

    Attributes:
        block_size: Columns whose removed weights are chosen and made up for together; in N:M
            patterns rounded down to whole groups, but at least one.
        pattern: ``block``, or N:M groups (``2:4`` keeps 2 of 4).
        rule: How groups choose. ``multiple``: by the least joint error of all their subsets
            (groups of up to 10). ``single``: by the least ``w_j² / A_jj``. The pattern ``block``
            has too many subsets, and is chosen by ``single`` under both.
        mask: A pruner whose masks are taken as they are; then the blocks only compensate.
    """

    block_size: int = 128
    pattern: str = "block"
    rule: str = "multiple"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1, not {self.block_size}")
        if self.rule not in ("single", "multiple"):
            raise ConfigError(f"rule must be single or multiple, not {self.rule!r}")
        pattern = Pattern.parse(self.pattern)
        if pattern.scope not in ("block", "group"):
            raise ConfigError(f"group_obs' pattern must be block or N:M, not {self.pattern!r}")
        if self.rule == "multiple" and comb(pattern.group, pattern.group // 2) > _MOST_SUBSETS:
            raise ConfigError(
                f"rule multiple compares all subsets of a group, too many in {self.pattern!r}: "
                "take rule single"
            )

    def update(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterator[UpdatedWeight]:
        """Yield the compensated weights of each count."""
        factor = evidence.inputs.inverse_factor(self.damping)
        upper = factor.upper.to(weight.device)
        for choose in self._choices(weight, evidence, factor.dead, counts, seed):
            yield eliminate(weight.float(), upper, choose, self._width)

    @property
    def _width(self) -> int:
        """Columns of a block: whole groups, unless the mask is given."""
        group = Pattern.parse(self.pattern).group
        if group == 0 or self.mask is not None:
            return self.block_size
        return max(group, self.block_size - self.block_size % group)

    def _choices(
        self, weight: Tensor, evidence: Evidence, dead: Tensor, counts: Sequence[int], seed: int
    ) -> Iterator[Choose]:
        """Yield for each count how blocks choose."""
        if self.mask is not None:
            for given in compute_masks(self.mask, weight, evidence, counts, seed):
                yield partial(_choose_given, given)
            return
        pattern = Pattern.parse(self.pattern)
        pattern.check(weight.shape, counts)
        ties = draw_tie_breaks(weight.shape, seed, weight.device)
        known = _Known(weight == 0, dead.to(weight.device), ties)
        for count in counts:
            if pattern.scope == "block":
                quotas = compute_block_quotas(count, known.zero, known.dead, self._width)
                yield partial(_choose_least_of_block, known, quotas)
                continue
            choose = (
                _choose_least_of_groups if self.rule == "single" else _choose_cheapest_of_groups
            )
            number = pattern.removed_in_group(count, weight.numel())
            yield partial(choose, known, pattern.group, number)


class _Known(NamedTuple):
    """Facts on the whole matrix that choices depend on, in addition to the current weights."""

    zero: Tensor
    dead: Tensor
    ties: Tensor


def _choose_given(removed: Tensor, block: ColumnBlock) -> Tensor:
    """Choose what a mask says."""
    return removed[:, block.columns]


def _choose_least_of_block(known: _Known, quotas: Sequence[int], block: ColumnBlock) -> Tensor:
    """Choose the block's quota of least single errors over all rows."""
    return select_smallest(_build_keys(known, block), quotas[block.number])


def _choose_least_of_groups(known: _Known, group: int, number: int, block: ColumnBlock) -> Tensor:
    """Choose the least single errors of each group."""
    return select_smallest_of_groups(_build_keys(known, block), group, number)


def _choose_cheapest_of_groups(
    known: _Known, group: int, number: int, block: ColumnBlock
) -> Tensor:
    """Choose the subset of least joint error of each group."""
    weights = block.weights.masked_fill(known.dead[block.columns], 0)
    zero, ties = known.zero[:, block.columns], known.ties[:, block.columns]
    chosen = []
    for start in range(0, len(block.inverse), group):
        part = slice(start, start + group)
        inverse = block.inverse[part, part]
        chosen.append(
            choose_cheapest_subset(weights[:, part], inverse, number, zero[:, part], ties[:, part])
        )
    return torch.cat(chosen, dim=1)


def _build_keys(known: _Known, block: ColumnBlock) -> Tensor:
    """Return keys that sort by ``w_j² / A_jj``, the error of a single removal."""
    saliency = block.weights.abs() * block.inverse.diagonal().rsqrt()
    saliency = saliency.masked_fill(known.dead[block.columns], 0).float()
    return build_sort_keys(saliency, known.zero[:, block.columns], known.ties[:, block.columns])


def eliminate(weights: Tensor, upper: Tensor, choose: Choose, width: int) -> UpdatedWeight:
    """Remove what ``choose`` picks block by block, and move each row from the block on.

    Args:
        weights: ``(rows, columns)``; not modified.
        upper: ``(columns, columns)`` factor ``U`` of the inverse Hessian; the trailing inverses
            are ``(H[a:, a:])⁻¹ = U[a:, a:]ᵀ U[a:, a:]``.
        choose: Gets a block, returns what is removed of it.
        width: Columns of a block; the last may have fewer.
    """
    work = weights.clone(memory_format=torch.contiguous_format)
    removed = torch.zeros_like(work, dtype=torch.bool)
    for number, start in enumerate(range(0, work.shape[1], width)):
        columns = slice(start, start + width)
        inside = upper[columns, columns].double()
        inverse = inside.T @ inside
        # More than rounding can take away: whatever is solved here is positive definite.
        inverse.diagonal().mul_(1 + len(inverse) ** 2 * torch.finfo(inverse.dtype).eps)
        gone = choose(ColumnBlock(work[:, columns], inverse, columns, number))
        errors = solve_rows(work[:, columns], gone, inverse) @ inside.T
        work[:, start:].addmm_(errors.to(work.dtype), upper[columns, start:], alpha=-1)
        work[:, columns].masked_fill_(gone, 0)
        removed[:, columns] = gone
    return UpdatedWeight(work, removed)


def solve_rows(weights: Tensor, removed: Tensor, inverse: Tensor) -> Tensor:
    """Return ``y``, zero where nothing is removed, with ``y A = w`` where something is.

    Args:
        weights: ``w``, ``(rows, width)``.
        removed: bool, of the same shape.
        inverse: ``A``, ``(width, width)`` float64, positive definite.
    """
    found = torch.zeros_like(weights, dtype=inverse.dtype)
    numbers = removed.sum(dim=1)
    step = max(1, _SOLVE_BYTES // (8 * max(1, int(numbers.max())) ** 2))
    # Rows of like size together: little padding.
    for rows in torch.split(numbers.argsort(stable=True), step):
        found[rows] = _solve_padded(weights[rows], removed[rows], inverse)
    return found


def _solve_padded(weights: Tensor, removed: Tensor, inverse: Tensor) -> Tensor:
    """Solve all rows as systems of one size; those that have fewer get rows of the identity."""
    size = int(removed.sum(dim=1).max())
    where = (~removed).byte().argsort(dim=1, stable=True)[:, :size]
    real = removed.gather(1, where)
    systems = inverse[where[:, :, None], where[:, None, :]]
    systems.mul_(real[:, :, None] & real[:, None, :]).diagonal(dim1=1, dim2=2).add_(~real)
    targets = (weights.gather(1, where) * real).to(inverse.dtype)
    factors = torch.linalg.cholesky_ex(systems).L
    solved = torch.cholesky_solve(targets[:, :, None], factors)[:, :, 0]
    return targets.new_zeros(weights.shape).scatter_(1, where, solved)
