"""The one walk of a pruner over a model: every unit in forward order, with its evidence.

Sequential pruning, supernets, sensitivities and error curves differ in what they do with a unit's
variants. How a unit is pruned is the same for all: its evidence at that point of the walk, and a
seed of its own for ties.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.variants import Variants
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import WeightView
from sparsity_search.models.running.walk import Refresh, Visit, walk
from sparsity_search.profiles.layout import Unit
from sparsity_search.utils.random import derive_seed


class UnitVisit(NamedTuple):
    """A unit that the walk has reached.

    Attributes:
        unit: The unit.
        view: Where its weights are read and written.
        weight: The weights as they are now.
        evidence: What is known of them.
    """

    unit: Unit
    view: WeightView
    weight: Tensor
    evidence: Evidence

    def prune(self, pruner: Pruner, counts: Sequence[int], seed: int) -> Variants:
        """Return the unit's variants at some counts; ``seed`` is that of the whole model."""
        ties = derive_seed(seed, "ties", self.unit.name)
        return pruner.prune(self.weight, self.evidence, counts, seed=ties)


class Pruned(NamedTuple):
    """A unit of a dense model, and its pruned weights.

    Attributes:
        unit: The unit.
        view: Where its weights are read and written.
        dense: A copy of its dense weights.
        levels: Its weights at each count of its table, computed when they are asked for.
        evidence: What is known of the weights.
    """

    unit: Unit
    view: WeightView
    dense: Tensor
    levels: Iterator[Tensor]
    evidence: Evidence


def walk_for(
    pruner: Pruner,
    subject: PrunableModel,
    tokens: Tensor,
    *,
    rewritten: bool,
    statistic: Statistic = Statistic.NONE,
    refresh: Refresh = "layer",
) -> Generator[Visit, None, None]:
    """Walk over the blocks, and gather what ``pruner`` needs to know of the weights.

    Args:
        pruner: What will prune the units.
        subject: The model.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        rewritten: Whether the caller rewrites weights, see `models.running.walk.walk`.
        statistic: What the caller needs of the inputs beyond what the pruner does.
        refresh: See `models.running.walk.walk`.
    """
    return walk(
        subject,
        tokens,
        max(pruner.requires, statistic),
        rewritten=rewritten,
        gradient=pruner.needs_gradient,
        following=pruner.needs_following,
        dense_inputs=pruner.needs_dense_inputs,
        refresh=refresh,
    )


def visit_units(subject: PrunableModel, visit: Visit) -> Iterator[UnitVisit]:
    """Yield the units of a visit in forward order, each with its weights at that moment."""
    for unit in visit.units:
        view = subject.views[unit.name]
        yield UnitVisit(unit, view, view.read(), visit.evidence[unit.name])


def pruned_units(
    subject: PrunableModel,
    tokens: Tensor,
    pruner: Pruner,
    tables: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    statistic: Statistic = Statistic.NONE,
) -> Iterator[Pruned]:
    """Yield every unit pruned alone, with the dense model before and after it.

    Args:
        subject: The dense model; the caller has to put back what it changes.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        pruner: Removes the items.
        tables: Increasing counts of each unit, in the layout's order.
        seed: Breaks ties among the pruner's scores.
        statistic: What the caller needs of the inputs beyond what the pruner does.

    Raises:
        ConfigError: The pruner merges units.
    """
    if pruner.merges:
        raise ConfigError("this pruner merges removed units into kept ones: use drop instead")
    for visit in walk_for(pruner, subject, tokens, rewritten=False, statistic=statistic):
        for reached in visit_units(subject, visit):
            unit, view, weight, evidence = reached
            counts = tables[subject.layout.position(unit.name)]
            dense = weight.clone()
            levels = _levels(reached._replace(weight=dense), pruner, counts, seed)
            yield Pruned(unit, view, dense, levels, evidence)


def _levels(
    reached: UnitVisit, pruner: Pruner, counts: Sequence[int], seed: int
) -> Iterator[Tensor]:
    if not counts:
        return
    variants = reached.prune(pruner, counts, seed)
    for count in counts:
        yield variants.at(reached.weight, count)
