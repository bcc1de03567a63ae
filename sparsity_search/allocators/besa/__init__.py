"""BESA: sparsities of a block's rows and linears, learned from the block's output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import AllowInfNan
from torch import Tensor

from sparsity_search.allocators.besa.block_training import (
    MaskedBlock,
    compute_relative_error,
    observe,
)
from sparsity_search.allocators.besa.differentiable import (
    LearnedMask,
    build_candidate_rates,
    build_keep_mask,
    compute_initial_logits,
    compute_ranks,
)
from sparsity_search.allocators.besa.tradeoffs import balance_sparsities, shift_sparsities
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream
from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.layout import Layout

_CHOICES = {"per": ("row", "layer"), "scope": ("block", "model")}
#: Where a block's error is measured, between the ends of its range around the target.
_LEVELS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])


class _TrainedBlock(NamedTuple):
    """The rates learned in one block.

    Attributes:
        units: Positions of its units in the layout.
        rates: Sparsity of each row of each of them.
        columns: Weights of a row of each of them.
        levels: Sparsities that the block may have, rising.
        errors: Relative error of its output at each, if there are several.
    """

    units: list[int]
    rates: list[np.ndarray]
    columns: list[int]
    levels: np.ndarray
    errors: np.ndarray

    @property
    def sparsity(self) -> float:
        """Sparsity of the block as it was trained."""
        sizes = [len(rates) * n for rates, n in zip(self.rates, self.columns, strict=True)]
        return float(np.average([rates.mean() for rates in self.rates], weights=sizes))


@dataclass(frozen=True, kw_only=True)
class BESAAllocator(Allocator):
    """Learns row-wise rates block by block, by gradient descent on the block's output.

    BESA (Xu et al., ICLR 2024, arXiv 2402.16880, section 3). Each row of a linear (or each
    linear) mixes candidate rates by the softmax of its logits; Wanda's order within rows, sorted
    once, makes its mask of the mixed rate. The logits are trained, with frozen weights and a
    straight-through gradient, on ``error + penalty · ((s - S) / S)²``: the block's relative error
    and its sparsity against the target. Blocks go in order, each on what the pruned ones before
    it put out.

    The mixture starts at the target, so any target can be met, and a shift of each block's rates
    and the budget's projection make sparsities exact. With ``scope="model"`` each trained block
    is then measured around the target, and blocks get the sparsities of equal marginal error.

    Attributes:
        step: Distance of the candidate rates.
        per: Logits for each ``row``, or for each ``layer`` (linear).
        scope: Each ``block`` meets the target, as published, or the ``model`` does.
        spread: With ``scope="model"``: how far a block may be from the target.
        penalty: Weight of the sparsity term (β in the released code).
        width: Standard deviation of the first mixture around the target; infinite: the flattest
            mixture, all logits 0 at 0.5, as published.
        learning_rate: Of AdamW, which has no weight decay here.
        epochs: How often each block sees the text.
        sequences: How many calibration sequences to use; a step takes one.
    """

    step: float = 0.01
    per: str = "row"
    scope: str = "block"
    spread: float = 0.2
    penalty: float = 5.0
    width: Annotated[float, AllowInfNan(True)] = math.inf
    learning_rate: float = 0.1
    epochs: int = 1
    sequences: int = 8

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = " or ".join(allowed)
                raise ConfigError(f"{name} must be {choices}, not {getattr(self, name)!r}")
        if not (0 < self.step <= 1 and 0 < self.spread < 1):
            raise ConfigError("step must lie in (0, 1], and spread in (0, 1)")
        if not (0 <= self.penalty < math.inf and self.width > 0):
            raise ConfigError("penalty must be at least 0 and finite, and width positive")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"learning_rate must be positive and finite, not {self.learning_rate}"
            )
        if self.epochs < 0 or self.sequences < 1:
            raise ConfigError("epochs must be at least 0, and sequences at least 1")

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile, and the sparsity of each row of each unit, ``(rows,)`` float32.

        The mean of a unit's rows is its sparsity in the profile.

        Raises:
            NumericalError: A weight, an input or a loss is not finite.
        """
        layout, target = problem.layout, problem.target
        text = problem.tokens[: self.sequences]
        learned = list(self._train(problem.subject, text, target, problem.bounds))
        profile = problem.project(_compute_sparsities(layout, learned, target, problem.bounds))
        arrays = {
            layout[unit].name: _scale_rates(rates, profile.sparsities[unit])
            for trained in learned
            for unit, rates in zip(trained.units, trained.rates, strict=True)
        }
        off = max(abs(trained.sparsity - target) for trained in learned)
        note = f"learned sparsities of blocks were within {off:.4f} of the target before the shift"
        return Allocation(profile, arrays, (note,))

    def _train(
        self, subject: PrunableModel, tokens: Tensor, target: float, bounds: Bounds
    ) -> Iterator[_TrainedBlock]:
        """Yield what is learned of each block that has units."""
        runner = BlockRunner(subject, tokens, at_once=1)
        streams = runner.embed()
        layout = subject.layout
        for index in range(len(subject.blocks)):
            block, outputs = observe(subject, runner, index, streams)
            if not block.views:
                streams = outputs
                continue
            units = [layout.position(name) for name in block.views]
            masks = self._fit(block, streams, outputs, target)
            size = layout.counts[units].sum()
            limits = bounds.lower[units].sum() / size, bounds.upper[units].sum() / size
            reach = self.spread * _LEVELS if self.scope == "model" else np.zeros(1)
            trained = _TrainedBlock(
                units=units,
                rates=[mask.row_rates().numpy() for mask in masks.values()],
                columns=[mask.ranks.shape[1] for mask in masks.values()],
                levels=np.unique(np.clip(target + reach, *limits)),
                errors=np.zeros(1),
            )
            if len(trained.levels) > 1:
                errors = [
                    _compute_error(block, streams, outputs, _harden_masks(masks, trained, s))
                    for s in trained.levels
                ]
                trained = trained._replace(errors=np.array(errors))
            hard = _harden_masks(masks, trained, float(np.clip(target, *limits)))
            streams = [_run_block(block, stream, hard) for stream in streams]
            yield trained

    @torch.enable_grad()
    def _fit(
        self,
        block: MaskedBlock,
        streams: Sequence[Stream],
        wanted: Sequence[Stream],
        target: float,
    ) -> dict[str, LearnedMask]:
        """Return masks of a block's units, trained so that its outputs come near to ``wanted``."""
        masks = {name: self._mask(block, name, target) for name in block.views}
        logits = [mask.logits for mask in masks.values()]
        sizes = [mask.ranks.numel() for mask in masks.values()]
        optimizer = torch.optim.AdamW(logits, lr=self.learning_rate, weight_decay=0.0)
        for _ in range(self.epochs):
            for stream, output in zip(streams, wanted, strict=True):
                soft = {name: mask.mask() for name, mask in masks.items()}
                error = compute_relative_error(block(stream, soft).hidden, output.hidden.clone())
                means = torch.stack([mask.sparsity().mean() for mask in masks.values()])
                sparsity = means @ means.new_tensor(sizes) / sum(sizes)
                loss = error + self.penalty * ((sparsity - target) / target).square()
                if not loss.isfinite():
                    raise NumericalError("besa: the error of a block's output is not finite")
                gradients = torch.autograd.grad(loss, logits)
                for parameter, gradient in zip(logits, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        return masks

    def _mask(self, block: MaskedBlock, name: str, target: float) -> LearnedMask:
        """Return the mask of one unit before training, in Wanda's order."""
        weight = block.views[name].read()
        scores = weight.float().abs() * block.statistics[name].norms().to(weight.device)
        if not scores.isfinite().all():
            raise NumericalError(f"{name}: scores are not finite")
        rates = build_candidate_rates(self.step)
        first = compute_initial_logits(rates, target, self.width)
        groups = len(weight) if self.per == "row" else 1
        logits = first.to(weight.device).repeat(groups, 1).requires_grad_()
        return LearnedMask(compute_ranks(scores, weight == 0), logits, rates)


def _harden_masks(
    masks: Mapping[str, LearnedMask], trained: _TrainedBlock, level: float
) -> dict[str, Tensor]:
    """Return the masks of a block's units with all rates shifted to one sparsity of the block."""
    rates = _shift_rates(trained, level)
    return {
        name: build_keep_mask(mask.ranks, torch.from_numpy(rows))
        for (name, mask), rows in zip(masks.items(), rates, strict=True)
    }


def _shift_rates(trained: _TrainedBlock, level: float) -> list[np.ndarray]:
    """Return the rates of a block's rows, shifted to one sparsity of the block."""
    lengths = [len(rates) for rates in trained.rates]
    sizes = np.repeat(np.array(trained.columns, dtype=np.float64), lengths)
    rates = shift_sparsities(np.concatenate(trained.rates), sizes, level)
    return np.split(rates, np.cumsum(lengths)[:-1])


def _scale_rates(rates: np.ndarray, sparsity: float) -> np.ndarray:
    """Return the rates of a unit's rows, shifted to the unit's sparsity, float32."""
    return shift_sparsities(rates, np.ones(len(rates)), sparsity).astype(np.float32)


@torch.no_grad()
def _run_block(block: MaskedBlock, stream: Stream, masks: Mapping[str, Tensor]) -> Stream:
    return block(stream, masks)


def _compute_error(
    block: MaskedBlock,
    streams: Sequence[Stream],
    wanted: Sequence[Stream],
    masks: Mapping[str, Tensor],
) -> float:
    """Return the mean relative error of a masked block's outputs."""
    errors = [
        float(compute_relative_error(_run_block(block, stream, masks).hidden, output.hidden))
        for stream, output in zip(streams, wanted, strict=True)
    ]
    return sum(errors) / len(errors)


def _compute_sparsities(
    layout: Layout, found: Sequence[_TrainedBlock], target: float, bounds: Bounds
) -> np.ndarray:
    """Return the sparsity of each unit: those of a block shifted to the block's target."""
    sizes = np.array([layout.counts[trained.units].sum() for trained in found])
    curves = [trained.levels for trained in found], [trained.errors for trained in found]
    sparsities = np.zeros(len(layout))
    for trained, level in zip(found, balance_sparsities(*curves, sizes, target), strict=True):
        counts = layout.counts[trained.units]
        means = np.array([rates.mean() for rates in _shift_rates(trained, level)])
        low, high = (limit[trained.units] / counts for limit in (bounds.lower, bounds.upper))
        sparsities[trained.units] = shift_sparsities(means, counts, level, low, high)
    return sparsities
