"""A sensitivity whose losses are known, so that allocators can be tested without a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Toy(Sensitivity):
    """Unit ``i`` loses ``count · (1 + i % weights) · s ** power``; all pairs are ``pairs``."""

    weights: int = 3
    power: float = 2.0
    pairs: float | None = None

    def measure(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        pruner: Pruner,
        tables: Sequence[tuple[int, ...]],
        *,
        seed: int = 0,
    ) -> Scores:
        counts = tuple(np.array(table) for table in tables)
        losses = tuple(
            unit.count * (1 + i % self.weights) * (c / unit.count) ** self.power
            for i, (unit, c) in enumerate(zip(subject.layout, counts, strict=True))
        )
        scores = Scores(subject.layout, counts, losses, facts={"seed": seed})
        if self.pairs is None:
            return scores
        unit = np.repeat(np.arange(len(counts)), [len(c) for c in counts])
        pairs = np.where(unit[:, None] == unit, 0, self.pairs).astype(np.float32)
        return replace(scores, pairs=pairs)
