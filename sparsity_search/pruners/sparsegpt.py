"""SparseGPT: remove weights column by column, and let the later columns make up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.masks import apply_mask
from sparsity_search.evidence.statistics import InverseFactor
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks
from sparsity_search.pruners.bases.quotas import compute_block_quotas
from sparsity_search.pruners.bases.select import select_smallest, select_smallest_of_groups
from sparsity_search.pruners.bases.update import MaskedPruner, UpdatedWeight, compute_masks

#: Bound on the sweep's working memory; levels that do not fit are swept one group after another.
_STACK_BYTES = 2**28

#: Current weights of a block ``(rows, width)`` and its columns → which of them are removed.
Choose = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True, kw_only=True)
class SparseGPTPruner(MaskedPruner):
    """Sweep with optimal-brain-surgeon updates (Frantar & Alistarh 2023, arXiv 2301.00774, §3).

    With ``H⁻¹ = Uᵀ U``, a block of columns loses the entries of least ``w² / U_jj²``, taken from
    weights that the blocks before it have already changed; then all later columns move by
    ``-(w_j / U_jj) · U_j,:`` for each removed ``w_j``. All counts are swept together, stacked
    along rows, with one factor. A block loses a share of the count that fits its size, rounded
    cumulatively, so that the count is met exactly; zeros, then weights on dead inputs, go first.

    Attributes:
        block_size: Columns whose removed weights are chosen together (section 3.3).
        pattern: ``block``, or N:M groups (``2:4`` keeps 2 of 4), chosen as the sweep reaches
            them (section 3.4 of the paper).
        mask: A pruner whose masks are taken as they are; then the sweep only updates.
    """

    block_size: int = 128
    pattern: str = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1, not {self.block_size}")
        if Pattern.parse(self.pattern).scope not in ("block", "group"):
            raise ConfigError(f"sparsegpt's pattern must be block or N:M, not {self.pattern!r}")

    def update(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> Iterator[UpdatedWeight]:
        """Yield the swept weights of each count."""
        factor = evidence.inputs.inverse_factor(self.damping)
        upper = factor.upper.to(weight.device)
        for group in _split_counts(counts, weight.numel()):
            choose, width = self._choice(weight, evidence, factor, group, seed)
            swept = sweep(weight.float().repeat(len(group), 1), upper, choose, width)
            shape = (len(group), *weight.shape)
            stacked = zip(swept.weights.view(shape), swept.removed.view(shape), strict=True)
            yield from (UpdatedWeight(weights, removed) for weights, removed in stacked)

    def _choice(
        self,
        weight: Tensor,
        evidence: Evidence,
        factor: InverseFactor,
        counts: Sequence[int],
        seed: int,
    ) -> tuple[Choose, int]:
        """Return a function that chooses the removed weights of a block, and a block's width."""
        if self.mask is not None:
            removed = torch.cat(compute_masks(self.mask, weight, evidence, counts, seed))
            return lambda _, columns: removed[:, columns], self.block_size
        zero, dead = weight == 0, factor.dead.to(weight.device)
        ties = draw_tie_breaks(weight.shape, seed, weight.device)
        sensitivity = factor.upper.to(weight.device).diagonal().reciprocal().masked_fill(dead, 0)

        def keys(current: Tensor, columns: slice) -> Tensor:
            saliency = (current.abs() * sensitivity[columns]).view(len(counts), len(weight), -1)
            return build_sort_keys(saliency, zero[:, columns], ties[:, columns])

        pattern = Pattern.parse(self.pattern)
        pattern.check(weight.shape, counts)
        if pattern.is_grouped:
            numbers = [pattern.removed_in_group(count, weight.numel()) for count in counts]

            def choose_groups(current: Tensor, columns: slice) -> Tensor:
                pairs = zip(keys(current, columns), numbers, strict=True)
                return torch.cat(
                    [select_smallest_of_groups(k, pattern.group, n) for k, n in pairs]
                )

            return choose_groups, pattern.group
        quotas = [compute_block_quotas(count, zero, dead, self.block_size) for count in counts]

        def choose_blocks(current: Tensor, columns: slice) -> Tensor:
            number = columns.start // self.block_size
            pairs = zip(keys(current, columns), quotas, strict=True)
            return torch.cat([select_smallest(k, quota[number]) for k, quota in pairs])

        return choose_blocks, self.block_size


class SweepResult(NamedTuple):
    """Outcome of `sweep`; all ``(rows, columns)``, and ``weights = before - errors @ upper``."""

    weights: Tensor
    errors: Tensor
    removed: Tensor


def sweep(weights: Tensor, upper: Tensor, choose: Choose, block_size: int) -> SweepResult:
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
    return SweepResult(work.T, errors.T, removed.T)


def _eliminate(work: Tensor, errors: Tensor, removed: Tensor, upper: Tensor) -> None:
    """Fill ``errors`` and update ``work`` within one block; all are ``(width, rows)``."""
    for j in range(len(work)):
        current = torch.addmv(work[j], errors[:j].T, upper[:j, j], alpha=-1)
        errors[j] = current.mul_(removed[j]).div_(upper[j, j])
    work.copy_(apply_mask(work.addmm_(upper.T, errors, alpha=-1), ~removed))


def _split_counts(counts: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut ``counts`` so that float32 weights and errors of a group stay within the bound."""
    step = max(1, _STACK_BYTES // (8 * size))
    return [counts[i : i + step] for i in range(0, len(counts), step)]
