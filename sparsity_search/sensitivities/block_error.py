"""The error of each decoder block's output with one unit pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream, list_hidden
from sparsity_search.profiles.scores import Scores
from sparsity_search.pruning.walk import pruned_units
from sparsity_search.sensitivities.bases.losses import enforce_rising
from sparsity_search.sensitivities.bases.short_text import ShortTextSensitivity


@dataclass(frozen=True, kw_only=True)
class BlockErrorSensitivity(ShortTextSensitivity):
    """Squared error of the block's output with one unit pruned, relative to what the block adds.

    ``‖y' − y‖² / ‖y − x‖²`` over all tokens, with the block's dense input ``x`` and output ``y``.
    Costs one forward pass of a block for each unit and level; the text may be short.
    """

    experimental: ClassVar[str] = (
        "perplexity of its knapsack with Wanda at 70% 2.65 times that of uniform (SmolLM2-135M)"
    )

    def measure(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        pruner: Pruner,
        tables: Sequence[tuple[int, ...]],
        *,
        seed: int = 0,
    ) -> Scores:
        """Return the errors, see `Sensitivity.measure`."""
        self.check_units(subject.units)
        runner = BlockRunner(subject, self.text(tokens))
        before, block = runner.embed(), 0
        after, losses = runner.run(0, before), []
        with subject.preserved():
            for unit, view, dense, levels, _ in pruned_units(
                subject, tokens, pruner, tables, seed=seed
            ):
                while block < unit.block:
                    before, block = after, block + 1
                    after = runner.run(block, before)
                added, found = _compute_distance(after, before), []
                for level in levels:
                    view.write(level)
                    found.append(
                        _compute_distance(runner.run(block, before), after) / (added or 1.0)
                    )
                view.write(dense)
                losses.append(enforce_rising(found, unit.name))
        return Scores(subject.layout, tuple(np.array(table) for table in tables), tuple(losses))


@torch.inference_mode()
def _compute_distance(one: Sequence[Stream], other: Sequence[Stream]) -> float:
    """Return the squared distance of the hidden states of two streams."""
    pairs = zip(list_hidden(one), list_hidden(other), strict=True)
    return sum(float((x.float() - y.float()).square().double().sum()) for x, y in pairs)
