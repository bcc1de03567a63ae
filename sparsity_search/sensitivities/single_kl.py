"""The divergence from the dense model, really measured with one unit pruned at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import check_head, compute_divergence
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream
from sparsity_search.profiles.scores import Scores
from sparsity_search.pruning.walk import pruned_units
from sparsity_search.sensitivities.bases.losses import enforce_rising
from sparsity_search.sensitivities.bases.short_text import ShortTextSensitivity


@dataclass(frozen=True, kw_only=True)
class SingleKLSensitivity(ShortTextSensitivity):
    """``KL(dense ‖ pruned)`` with one unit pruned at a time, mean over tokens, in nats.

    Additive methods assume that these losses add up; EvoPress (arXiv 2410.14649, section 2) shows
    that this is only approximate. The hidden states before the unit's block are kept, and only
    the later blocks run, so a level costs half a forward pass on average.
    """

    sequences: int = 2

    def measure(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        pruner: Pruner,
        tables: Sequence[tuple[int, ...]],
        *,
        seed: int = 0,
    ) -> Scores:
        """Return the divergences, see `Sensitivity.measure`.

        Raises:
            ModelError: What the model makes of its last hidden states is not understood.
        """
        self.check_units(subject.units)
        text = self.text(tokens)
        check_head(subject.model, text)
        runner, n_blocks = BlockRunner(subject, text), len(subject.blocks)

        def ending(hidden: Sequence[Stream], block: int) -> list[Tensor]:
            for following in range(block, n_blocks):
                hidden = runner.run(following, hidden)
            return runner.finish(hidden)

        hidden, block = runner.embed(), 0
        teacher, losses = ending(hidden, 0), []
        with subject.preserved():
            for unit, view, dense, levels, _ in pruned_units(
                subject, tokens, pruner, tables, seed=seed
            ):
                while block < unit.block:
                    hidden, block = runner.run(block, hidden), block + 1
                found = []
                for level in levels:
                    view.write(level)
                    pairs = zip(teacher, ending(hidden, block), strict=True)
                    found.append(sum(compute_divergence(subject.model, p, q) for p, q in pairs))
                view.write(dense)
                losses.append(enforce_rising(np.array(found) / text.numel(), unit.name))
        return Scores(subject.layout, tuple(np.array(table) for table in tables), tuple(losses))
