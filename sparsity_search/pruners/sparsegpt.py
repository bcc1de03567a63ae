"""SparseGPT: remove weights column by column, and let the later columns make up for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.pruners._order import sort_keys, tie_breaks
from sparsity_search.pruners.base import Pruner, check_counts
from sparsity_search.statistics import InputStatistics, InverseFactor, Statistic
from sparsity_search.variants import StoredVariants

#: Bound on the sweep's working memory; levels that do not fit are swept one group after another.
_STACK_BYTES = 2**28

#: Current weights of a block ``(rows, width)`` and its columns → which of them are removed.
Choose = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Pruner):
    """Sweep with optimal-brain-surgeon updates (Frantar & Alistarh 2023, arXiv 2301.00774, §3).

    With ``H⁻¹ = Uᵀ U``, a block of columns loses the entries of least ``w² / U_jj²``, taken from
    weights that the blocks before it have already changed; then all later columns move by
    ``-(w_j / U_jj) · U_j,:`` for each removed ``w_j``. All counts are swept together, stacked
    along rows, with one factor. A block loses a share of the count that fits its size, rounded
    cumulatively, so that the count is met exactly; zeros, then weights on dead inputs, go first.

    Attributes:
        block_size: Columns whose removed weights are chosen together (section 3.3).
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
    """

    requires: ClassVar[Statistic] = Statistic.HESSIAN
    block_size: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1, not {self.block_size}")
        if not 0 <= self.damping <= 1:
            raise ConfigError(f"damping must lie in 0 … 1, not {self.damping}")

    @torch.no_grad()
    def prune(
        self, weight: Tensor, inputs: InputStatistics, counts: Sequence[int], *, seed: int
    ) -> StoredVariants:
        """Return pruned and updated weights, see `Pruner.prune`."""
        table = check_counts(counts, weight)
        if not weight.isfinite().all():
            raise NumericalError("the weight has NaN or Inf entries")
        factor = inputs.inverse_factor(self.damping)
        variants = weight.expand(len(table), *weight.shape).clone()
        unswept = int((weight == 0).sum())
        swept = [i for i, count in enumerate(table) if unswept < count < weight.numel()]
        if table and table[-1] == weight.numel():
            variants[-1] = 0
        for levels in _groups(swept, weight.numel()):
            at = [table[i] for i in levels]
            variants[levels] = _sweep_levels(weight, factor, at, self.block_size, seed)
        if not variants.isfinite().all():
            raise NumericalError(f"updated weights leave the range of {weight.dtype}")
        return StoredVariants(counts=table, weights=variants, notes=_notes(factor, self.damping))


class Swept(NamedTuple):
    """Outcome of `sweep`; all ``(rows, columns)``, and ``weights = before - errors @ upper``."""

    weights: Tensor
    errors: Tensor
    removed: Tensor


def sweep(weights: Tensor, upper: Tensor, choose: Choose, block_size: int) -> Swept:
    """Remove what ``choose`` picks block by block, and update the columns to the right.

    The damped layer error of the result is ``‖errors‖²``, row by row.

    Args:
        weights: ``(rows, columns)``; not modified.
        upper: ``(columns, columns)`` factor of the inverse Hessian.
        choose: Gets a block's current weights and its columns, returns what is removed of it.
        block_size: Columns of a block.
    """
    # Columns are contiguous here: every step below works on whole columns.
    work = weights.T.clone(memory_format=torch.contiguous_format)
    errors = torch.zeros_like(work)
    removed = torch.zeros_like(work, dtype=torch.bool)
    for start in range(0, len(work), block_size):
        block = slice(start, start + block_size)
        removed[block] = choose(work[block].T, block).T
        _eliminate(work[block], errors[block], removed[block], upper[block, block])
        later = slice(start + block_size, None)
        work[later].addmm_(upper[block, later].T, errors[block], alpha=-1)
    return Swept(work.T, errors.T, removed.T)


def _eliminate(work: Tensor, errors: Tensor, removed: Tensor, upper: Tensor) -> None:
    """Fill ``errors`` and update ``work`` within one block; all are ``(width, rows)``."""
    for j in range(len(work)):
        current = torch.addmv(work[j], errors[:j].T, upper[:j, j], alpha=-1)
        errors[j] = current.mul_(removed[j]).div_(upper[j, j])
    work.addmm_(upper.T, errors, alpha=-1).masked_fill_(removed, 0)


def _sweep_levels(
    weight: Tensor, factor: InverseFactor, counts: Sequence[int], block_size: int, seed: int
) -> Tensor:
    """Return ``(len(counts), rows, columns)`` in the weight's dtype, from one stacked sweep."""
    upper, dead = factor.upper.to(weight.device), factor.dead.to(weight.device)
    zero = weight == 0
    quotas = [block_quotas(count, zero, dead, block_size) for count in counts]
    ties = tie_breaks(weight.shape, seed, weight.device)
    sensitivity = upper.diagonal().reciprocal().masked_fill(dead, 0)

    def choose(current: Tensor, columns: slice) -> Tensor:
        saliency = (current.abs() * sensitivity[columns]).view(len(counts), len(weight), -1)
        keys = sort_keys(saliency, zero[:, columns], ties[:, columns])
        number = columns.start // block_size
        chosen = [_smallest(k, quota[number]) for k, quota in zip(keys, quotas, strict=True)]
        return torch.cat(chosen)

    swept = sweep(weight.float().repeat(len(counts), 1), upper, choose, block_size)
    cast = swept.weights.to(weight.dtype)
    # A kept weight that rounds to zero would make one zero too many.
    cast = cast.masked_fill(cast == 0, torch.finfo(cast.dtype).tiny)
    return cast.masked_fill(swept.removed, 0).view(len(counts), *weight.shape)


def _smallest(keys: Tensor, number: int) -> Tensor:
    """Return a mask of the ``number`` smallest of distinct ``keys``."""
    if number == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    return keys <= keys.flatten().kthvalue(number).values


def block_quotas(count: int, zero: Tensor, dead: Tensor, block_size: int) -> list[int]:
    """Return how many weights each block of columns loses; they sum to ``count``.

    Zeros are used up first, then weights on dead inputs, then the others; each kind is spread
    over the blocks in proportion, by cumulative rounding.

    Args:
        count: Weights to remove, at most all.
        zero: ``(rows, columns)`` bool.
        dead: ``(columns,)`` bool.
        block_size: Columns of a block.
    """
    zeros = zero.sum(dim=0)
    others = len(zero) - zeros
    last = torch.arange(block_size, zeros.numel() + block_size, block_size) - 1
    reached = torch.zeros(len(last), dtype=torch.long)
    for kind in (zeros, others * dead, others * ~dead):
        sizes = kind.cpu().cumsum(dim=0)
        taken = min(count, int(sizes[-1]))
        reached += sizes[last.clamp(max=len(sizes) - 1)] * taken // sizes[-1].clamp(min=1)
        count -= taken
    return [int(quota) for quota in reached.diff(prepend=reached.new_zeros(1))]


def _groups(levels: Sequence[int], size: int) -> list[list[int]]:
    """Cut ``levels`` so that float32 weights and errors of a group stay within the bound."""
    step = max(1, _STACK_BYTES // (8 * size))
    return [list(levels[i : i + step]) for i in range(0, len(levels), step)]


def _notes(factor: InverseFactor, damping: float) -> tuple[str, ...]:
    if factor.fallback:
        return ("the Hessian cannot be factorised: its diagonal was used",)
    if factor.damping != damping:
        return (f"damping raised from {damping:g} to {factor.damping:g}",)
    return ()
