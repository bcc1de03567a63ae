"""Masks whose sparsities can be learned: a few candidate rates, combined for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rates are sums in float32: this much of a weight must not cost a weight.
_ROUNDING = 1e-3
#: Beyond this tilt of the logits, their combination is one end of the candidates.
_STEEPEST = 1e6


def build_candidate_rates(step: float) -> Tensor:
    """Return the candidate rates, ``(n,)`` float64, rising from 0 to 1.

    They go down from 1 in steps; the last one is 0, whatever is left of its step.

    >>> build_candidate_rates(0.25).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    n = math.ceil(1 / step - 1e-9)
    rates = 1 - step * torch.arange(n, -1, -1, dtype=torch.float64)
    rates[0] = 0.0
    return rates


def compute_initial_logits(rates: Tensor, target: float, width: float = math.inf) -> Tensor:
    """Return logits whose softmax has the mean ``target``, ``(n,)`` float32.

    They are ``-(p - target)² / (2 width²) + tilt · p``, where the tilt makes the mean exact. With
    an infinite width this is the distribution of most entropy that has this mean; at 0.5 all
    logits are 0, as published.

    Args:
        rates: Candidates ``p``, ``(n,)`` float64, from 0 to 1.
        target: In ``(0, 1)``.
        width: Standard deviation of the peak, positive.
    """
    peak = -(rates - target).square() / (2 * width**2)
    low, high = -_STEEPEST, _STEEPEST
    while low < (tilt := (low + high) / 2) < high:
        logits = peak + tilt * rates
        mean = float(logits.softmax(0) @ rates)
        if abs(mean - target) < 1e-12:
            break
        low, high = (tilt, high) if mean < target else (low, tilt)
    return (logits - logits.max()).float()


def compute_thresholds(rates: Tensor, columns: int) -> list[int]:
    """Return how many of ``columns`` weights each candidate removes, rounded down."""
    return [math.floor(columns * rate + 1e-9) for rate in rates.tolist()]


def compute_keep_probability(weights: Tensor, limits: Sequence[int]) -> Tensor:
    """Return the probability that a weight is kept, by rank, ``(groups, columns)``.

    Rank ``r`` is kept by the candidates that remove at most ``r`` weights: the probability is the
    sum of their weights, and equal for all ranks between two limits (a bucket).

    Args:
        weights: Those of the candidates, ``(groups, n)``, by rising rate.
        limits: How many weights each candidate removes, from 0 to all of a row.
    """
    # A product with constants: its gradient, sums over ranks, is one product too and, unlike that
    # of an index, adds in a fixed order on GPUs.
    by_rank = torch.tensor(limits)[:, None] <= torch.arange(limits[-1])
    return weights @ by_rank.to(weights)


def compute_ranks(scores: Tensor, first: Tensor) -> Tensor:
    """Return the place of each weight in its row, the least score first; int64 of that shape.

    Args:
        scores: ``(rows, columns)``; of equal ones the left one comes first.
        first: bool, weights that come before all others.
    """
    order = scores.masked_fill(first, -math.inf).argsort(dim=1, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def build_keep_mask(ranks: Tensor, rates: Tensor) -> Tensor:
    """Return the mask that keeps all but the first ranks of each row, bool; counts are rounded."""
    counts = (rates * ranks.shape[1]).round().long().to(ranks.device)
    return ranks >= counts[:, None]


@dataclass(frozen=True, eq=False)
class LearnedMask:
    """The mask of one unit as a function of logits, BESA's (arXiv 2402.16880, section 3.2).

    Attributes:
        ranks: Place of each weight in its row, ``(rows, columns)`` int64.
        logits: ``(groups, n)`` float32; one group for each row, or one for all.
        rates: Candidates, ``(n,)`` float64.
    """

    ranks: Tensor
    logits: Tensor
    rates: Tensor

    def sparsity(self) -> Tensor:
        """Return the combined rate of each group, ``(groups,)``."""
        return self.logits.softmax(dim=1) @ self.rates.to(self.logits)

    def row_rates(self) -> Tensor:
        """Return the rate of each row, ``(rows,)`` float64, on the CPU."""
        return self.sparsity().detach().cpu().double().expand(len(self.ranks))

    def mask(self) -> Tensor:
        """Return the mask, ``(rows, columns)``: exactly 0 and 1, with the soft mask's gradient.

        The first ``⌊s · columns⌋`` ranks of a row are 0. The gradient is that of the probability
        to be kept, as if the mask were that.
        """
        columns = self.ranks.shape[1]
        weights = self.logits.softmax(dim=1)
        rate = (weights @ self.rates.to(weights)).detach()
        counts = (rate * columns + _ROUNDING).floor()
        hard = (self.ranks >= counts[:, None]).to(weights)
        soft = compute_keep_probability(weights, compute_thresholds(self.rates, columns))
        soft = soft.expand(len(self.ranks), -1).gather(1, self.ranks)
        return hard + (soft - soft.detach())
