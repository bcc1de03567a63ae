"""Removing groups of a consumer's columns, and the exact weights and errors that remain.

``W`` is ``(rows, columns)``, ``H`` the damped Hessian of its inputs, and a group is a run of
``inner`` columns: a channel, or the columns that read a head. The error of a change ``Δ`` is
``tr(Δ H Δᵀ)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky, solve_triangular

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.bases.order import draw_tie_breaks
from sparsity_search.pruners.bases.structured import (
    Compensation,
    StructuredPruner,
    get_structure_layout,
)
from sparsity_search.pruners.bases.update import format_damping_notes

#: Columns whose corrections wait for one matrix product.
_PANEL = 64
#: With less, rounding could make a downdated inverse indefinite.
_LEAST_DAMPING = 1e-6


@dataclass(frozen=True, kw_only=True)
class ColumnPruner(StructuredPruner):
    """Refits the consumer on what is kept, so that its damped layer error is the least possible.

    Attributes:
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
    """

    updates: ClassVar[bool] = True

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not _LEAST_DAMPING <= self.damping <= 1:
            raise ConfigError(f"damping must lie in {_LEAST_DAMPING:g} … 1, not {self.damping}")

    @property
    def requires(self) -> Statistic:
        """The Hessian."""
        return Statistic.HESSIAN

    def compensate(self, weight: Tensor, evidence: Evidence, removed: Tensor) -> Compensation:
        """Return the least-squares consumers of each set of removed structures."""
        consumer = get_structure_layout(evidence).consumer(weight)
        found = consumer.new_empty(len(removed), *consumer.shape)
        for level, fitted in enumerate(
            compute_refits(consumer, self._hessian(consumer, evidence), removed)
        ):
            found[level] = fitted
        return Compensation(found, notes=format_damping_notes(evidence.inputs, self.damping))

    @torch.no_grad()
    def error_curve(self, weight: Tensor, evidence: Evidence, *, seed: int = 0) -> Tensor:
        """Return the layer error after the refit for every count, from one Cholesky factor.

        Args:
            weight: The unit's matrix, see `StructureLayout`.
            evidence: What is known of it.
            seed: Decides between equal scores.

        Returns:
            ``(count + 1,)`` float64, rising from 0: ``tr(Δ H Δᵀ)`` with the damped Hessian, a
            mean over tokens of squared changes of the output. Dead inputs cost nothing.

        Raises:
            ConfigError: The unit is not structured, or its sets are not of one order.
            NumericalError: The weight or the statistics are not finite.
        """
        shape = get_structure_layout(evidence)
        if not weight.isfinite().all():
            raise NumericalError("the weight has NaN or Inf entries")
        order, empty = self.order(weight.float(), evidence, seed), shape.empty(weight)
        order = torch.cat([order[empty[order]], order[~empty[order]]])
        consumer = self._live(shape.consumer(weight.float()), evidence)
        return ColumnFit.of(consumer, self._hessian(consumer, evidence), order).errors()

    def _hessian(self, consumer: Tensor, evidence: Evidence) -> Tensor:
        return evidence.inputs.damped_hessian(self.damping).to(consumer.device)

    def _live(self, consumer: Tensor, evidence: Evidence) -> Tensor:
        """Return the consumer with zeros on dead inputs: these do not affect the output."""
        dead = evidence.inputs.inverse_factor(self.damping).dead
        return consumer.masked_fill(dead.to(consumer.device), 0)


@dataclass(frozen=True, eq=False)
class ColumnFit:
    """Least-squares weights and errors of every prefix of one order, from one factor of ``H``.

    Let the columns stand in the order in which they are kept, last removed first, and
    ``H = L Lᵀ``. If ``P`` are removed and ``S`` kept, the best change of ``W_S`` is
    ``W_P L_PS L_SS⁻¹``, and what remains is ``‖W_P L_PP‖²``, the squared length of the columns
    ``P`` of ``W L``: neither depends on where the cut is.

    Attributes:
        weight: ``(rows, columns)``, its columns in that order.
        lower: ``L``, ``(columns, columns)``.
        columns: ``(columns,)`` int64, where each stood before.
        inner: Columns of a group.
    """

    weight: Tensor
    lower: Tensor
    columns: Tensor
    inner: int

    @classmethod
    def of(cls, weight: Tensor, hessian: Tensor, order: Tensor) -> ColumnFit:
        """Return the fit of groups that are removed in ``order``.

        Args:
            weight: ``(rows, groups · inner)``.
            hessian: Damped, in the precision to compute in.
            order: ``(groups,)`` int64, all groups, the first removed first.
        """
        inner = weight.shape[1] // len(order)
        columns = list_columns(order.flip(0), inner)
        lower = cholesky(hessian[columns][:, columns])
        return cls(weight[:, columns].to(lower), lower, columns, inner)

    def errors(self) -> Tensor:
        """Return the least errors with 0, 1, … groups removed, ``(groups + 1,)``."""
        each = (self.weight @ self.lower).square().sum(dim=0).view(-1, self.inner).sum(dim=1)
        return torch.cat([each.new_zeros(1), each.flip(0).cumsum(dim=0)])

    def at(self, count: int) -> Tensor:
        """Return the weights of least error with the first ``count`` groups zero.

        They are ``(rows, columns)``, with columns where they stood.
        """
        cut = len(self.columns) - count * self.inner
        inner, coupling = self.lower[:cut, :cut], self.lower[cut:, :cut]
        right = self.weight[:, cut:] @ coupling
        change = solve_triangular(inner, right, upper=False, left=False)
        full = torch.zeros_like(self.weight)
        full[:, self.columns[:cut]] = self.weight[:, :cut] + change
        return full


def compute_refits(weight: Tensor, hessian: Tensor, removed: Tensor) -> Iterator[Tensor]:
    """Yield the least-squares weights of each set of removed groups.

    Sets of which each holds the one before share one factor; others need one each.

    Args:
        weight: ``(rows, groups · inner)``.
        hessian: Damped, in the precision to compute in.
        removed: ``(sets, groups)`` bool.
    """
    for nested in [removed] if is_nested(removed) else removed[:, None]:
        if len(nested):
            fit = ColumnFit.of(weight, hessian, find_order(nested))
            yield from (fit.at(int(count)) for count in nested.sum(dim=1))


def is_nested(removed: Tensor) -> bool:
    """Return whether each set, a row of ``removed``, holds the one before it."""
    return not bool((removed[:-1] & ~removed[1:]).any())


def find_order(removed: Tensor) -> Tensor:
    """Return an order of all groups of which each nested set, a row, is a prefix."""
    return removed.sum(dim=0).argsort(descending=True, stable=True)


def list_columns(groups: Tensor, inner: int) -> Tensor:
    """Return the columns of ``groups``, group by group, ``(len(groups) · inner,)``."""
    return (groups[:, None] * inner + torch.arange(inner, device=groups.device)).flatten()


@dataclass(frozen=True, kw_only=True)
class EliminationSettings:
    """How groups are eliminated one after another.

    Attributes:
        per_step: Groups that are chosen by the same scores and removed together.
        linear_term: Add the correlation with the dense output to a group's score.
        seed: Decides between equal scores.
    """

    per_step: int = 1
    linear_term: bool = False
    seed: int = 0


class EliminationResult(NamedTuple):
    """The result of greedy elimination.

    Attributes:
        order: Groups in the order in which they were removed, ``(count,)`` int64.
        costs: By how much the least-squares error grew with each, ``(count,)``; groups that were
            removed together have their common cost at the last of them.
    """

    order: Tensor
    costs: Tensor


def eliminate(
    weight: Tensor, hessian: Tensor, count: int, how: EliminationSettings
) -> EliminationResult:
    """Remove groups greedily, one step after another, until none is left.

    Each step removes the group of least ``tr(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ)``: by so much grows the
    least-squares error. Groups whose weights are all zero go first, and change nothing.

    Args:
        weight: ``(rows, count · inner)``.
        hessian: Damped, in the precision to compute in.
        count: Groups.
        how: Steps, scores and seed.
    """
    inner = weight.shape[1] // count
    idle = (weight == 0).view(len(weight), count, inner).all(dim=2).all(dim=0)
    # of equal scores the first wins
    shuffled = draw_tie_breaks(idle.shape, how.seed, weight.device)
    first, others = shuffled[idle[shuffled]], shuffled[~idle[shuffled]]
    columns = list_columns(others, inner)
    problem = _Elimination(
        weight[:, columns].to(hessian), hessian[columns][:, columns], inner, how.linear_term
    )
    found = problem.run(how.per_step)
    costs = torch.cat([found.costs.new_zeros(len(first)), found.costs])
    return EliminationResult(torch.cat([first, others[found.order]]), costs)


class _Lazy:
    """A square matrix less many outer products, which are applied a panel at a time.

    Attributes:
        blocks: ``(groups, inner, inner)``, its blocks on the diagonal, always up to date.
    """

    def __init__(self, matrix: Tensor, inner: int) -> None:
        self._matrix = matrix
        groups = len(matrix) // inner
        square = matrix.view(groups, inner, groups, inner)
        self.blocks = square.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()
        self._clear()

    def _clear(self) -> None:
        self._left = self._matrix.new_empty(0, len(self._matrix))
        self._right = self._left
        self.pending = 0

    def rows(self, index: Tensor) -> Tensor:
        """Return some rows, up to date."""
        left, right = self._left[: self.pending], self._right[: self.pending]
        return torch.addmm(self._matrix[index], left[:, index].T, right, alpha=-1)

    def subtract(self, left: Tensor, right: Tensor) -> None:
        """Take ``leftᵀ @ right`` away; both are ``(rank, columns)``."""
        end = self.pending + len(left)
        if end > len(self._left):
            self._left, self._right = (self._room(p, end) for p in (self._left, self._right))
        self._left[self.pending : end] = left
        self._right[self.pending : end] = right
        self.pending = end
        groups, inner = self.blocks.shape[:2]
        if inner == 1:
            self.blocks -= (left * right).sum(dim=0)[:, None, None]
            return
        shape = (len(left), groups, inner)
        self.blocks -= left.view(shape).permute(1, 2, 0) @ right.view(shape).transpose(0, 1)

    def _room(self, panel: Tensor, rank: int) -> Tensor:
        wider = panel.new_empty(max(rank, 2 * _PANEL), panel.shape[1])
        wider[: self.pending] = panel[: self.pending]
        return wider

    def settle(self, kept: Tensor, columns: Tensor) -> None:
        """Apply what is pending, to the ``kept`` groups and their ``columns`` alone."""
        left, right = (p[: self.pending, columns] for p in (self._left, self._right))
        self._matrix = self._matrix[columns][:, columns].addmm_(left.T, right, alpha=-1)
        self.blocks = self.blocks[kept]
        self._clear()


class _Elimination:
    """Optimal brain surgeon on groups of columns, in terms of products of columns alone.

    With the weights ``W`` as they are after some steps, and ``H⁻¹`` of what is left, it holds
    ``H⁻¹``, ``WᵀW`` and, for the linear term, ``Wᵀ (W₀ H)`` of the dense ``W₀``. Each is downdated
    by an outer product a removed column, so that a step reads a few rows, and matrix products of
    a whole panel do the rest.
    """

    def __init__(self, weight: Tensor, hessian: Tensor, inner: int, linear_term: bool) -> None:
        self.inner = inner
        gram = weight.T @ weight
        self.inverse = _Lazy(torch.cholesky_inverse(cholesky(hessian)), inner)
        self.gram = _Lazy(gram, inner)
        self.cross = _Lazy(gram @ hessian, inner) if linear_term else None
        self.names = torch.arange(weight.shape[1] // inner, device=weight.device)
        self.alive = torch.ones_like(self.names, dtype=torch.bool)

    def run(self, per_step: int) -> EliminationResult:
        """Remove all groups."""
        order, left = [self.names[:0]], len(self.names)
        costs = torch.zeros(left, dtype=self.gram.blocks.dtype, device=self.names.device)
        while left:
            number = min(per_step, left)
            chosen = _find_lowest(self.scores().masked_fill_(~self.alive, torch.inf), number)
            order.append(self.names[chosen])
            left -= number
            costs[len(costs) - left - 1] = self.remove(chosen)
            if left and self.inverse.pending + per_step * self.inner > _PANEL:
                self._settle()
        return EliminationResult(torch.cat(order), costs)

    def scores(self) -> Tensor:
        """Return the cost of removing each group; meaningless for removed groups."""
        if self.inner == 1:
            costs = (self.gram.blocks / self.inverse.blocks).flatten()
        else:
            lower = torch.linalg.cholesky_ex(self.inverse.blocks).L
            costs = _compute_traces(torch.cholesky_solve(self.gram.blocks, lower))
        return costs if self.cross is None else costs / 2 + _compute_traces(self.cross.blocks)

    def remove(self, groups: Tensor) -> Tensor:
        """Take ``groups`` out: ``W -= E V`` and ``H⁻¹ -= Vᵀ V`` with ``E = W_P L⁻ᵀ``.

        ``V = L⁻¹ [H⁻¹]_P,:`` and ``L Lᵀ = [H⁻¹]_PP``, where ``P`` are the groups' columns. Then
        ``WᵀW -= Cᵀ V + Vᵀ C`` with ``C = (WE)ᵀ - ½ EᵀE V``.

        Returns:
            ``tr(EᵀE)``, by which the least-squares error grows.
        """
        columns = list_columns(groups, self.inner)
        rows = self.inverse.rows(columns)
        lower = cholesky(rows[:, columns])
        change = solve_triangular(lower, rows, upper=False)
        product = solve_triangular(lower, self.gram.rows(columns), upper=False)
        square = solve_triangular(lower, product[:, columns].T, upper=False)
        product = torch.addmm(product, square, change, alpha=-0.5)
        if self.cross is not None:
            dense = solve_triangular(lower, self.cross.rows(columns), upper=False)
            self.cross.subtract(change, dense)
        self.inverse.subtract(change, change)
        self.gram.subtract(torch.cat([product, change]), torch.cat([change, product]))
        self.alive[groups] = False
        return torch.trace(square)

    def _settle(self) -> None:
        """Apply pending corrections, and forget the removed groups."""
        kept = self.alive.nonzero().flatten()
        columns = list_columns(kept, self.inner)
        for matrix in (self.inverse, self.gram, self.cross):
            if matrix is not None:
                matrix.settle(kept, columns)
        self.names, self.alive = self.names[kept], self.alive[kept]


def _compute_traces(blocks: Tensor) -> Tensor:
    return blocks.diagonal(dim1=1, dim2=2).sum(dim=1)


def _find_lowest(scores: Tensor, number: int) -> Tensor:
    """Return the positions of the lowest scores, the first of equal ones first."""
    return scores.argmin()[None] if number == 1 else scores.argsort(stable=True)[:number]
