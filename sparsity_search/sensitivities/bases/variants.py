"""Every unit of a dense model with its pruned variants, in one walk over the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import View
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.layout import Unit
from sparsity_search.utils.random import derive_seed


class Pruned(NamedTuple):
    """One unit and what it is at every level.

    Attributes:
        unit: The unit.
        view: Its weights, dense.
        levels: Its weights at each count of its table, made as they are asked for.
        inputs: Statistics of what it reads.
    """

    unit: Unit
    view: View
    levels: Iterator[Tensor]
    inputs: InputStatistics


def pruned_units(
    subject: PrunableModel,
    tokens: Tensor,
    pruner: Pruner,
    tables: Sequence[tuple[int, ...]],
    seed: int,
    statistic: Statistic = Statistic.NONE,
) -> Iterator[Pruned]:
    """Yield every unit in forward order, with the dense model before and after it.

    Args:
        subject: The dense model; what the caller changes it has to put back.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        pruner: What removes items.
        tables: Increasing counts of each unit.
        seed: Breaks ties among the pruner's scores.
        statistic: What the caller needs of the inputs beyond what the pruner does.

    Raises:
        ConfigError: The pruner merges units.
    """
    if pruner.merges:
        raise ConfigError("this pruner merges removed units into kept ones: use drop instead")
    of = dict(zip((unit.name for unit in subject.layout), tables, strict=True))
    needed, gradient = max(pruner.requires, statistic), pruner.needs_gradient
    for visit in walk(subject, tokens, needed, rewritten=False, gradient=gradient):
        for unit in visit.units:
            view, counts = subject.views[unit.name], of[unit.name]
            dense = view.read().clone()
            variants = pruner.prune(
                dense, visit.evidence[unit.name], counts, seed=derive_seed(seed, "ties", unit.name)
            )
            levels = (variants.at(dense, count) for count in counts)
            yield Pruned(unit, view, levels, visit.statistics[unit.name])
