"""Pruners that score each weight once, and keep the others as they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.pruners._order import Scope, removal_order
from sparsity_search.pruners.base import Pruner, check_counts
from sparsity_search.statistics import InputStatistics
from sparsity_search.variants import RankedVariants, codes_of


@dataclass(frozen=True, kw_only=True)
class ScorePruner(Pruner):
    """Ranks the weights once by a score; all counts are prefixes of that order, masks nest.

    Attributes:
        scope: Which weights compete: all of the ``layer``, or those of one ``row`` (output).
    """

    scope: Scope = "layer"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ConfigError(f"scope must be one of {get_args(Scope)}, not {self.scope!r}")

    @abstractmethod
    def score(self, weight: Tensor, inputs: InputStatistics) -> Tensor:
        """Return how much each weight matters: not negative, float32, of the weight's shape.

        Args:
            weight: ``(rows, columns)`` in float32.
            inputs: Statistics of the tensor that the weight multiplies.
        """

    def prune(
        self, weight: Tensor, inputs: InputStatistics, counts: Sequence[int], *, seed: int
    ) -> RankedVariants:
        """Return nested masks, see `Pruner.prune`."""
        table = check_counts(counts, weight)
        score = self.score(weight.float(), inputs)
        if not score.isfinite().all():
            raise NumericalError("scores are not finite: the weight has NaN, Inf or huge entries")
        order = removal_order(score, weight == 0, self.scope, seed)
        return RankedVariants(counts=table, codes=codes_of(order, table).view(weight.shape))
