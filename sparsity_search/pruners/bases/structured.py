"""Pruners that remove whole structures of a unit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.evidence.variants import StructuredVariants
from sparsity_search.interfaces.pruner import Pruner, check_table
from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks


class Compensation(NamedTuple):
    """New consumers and biases that compensate the removed structures; None: unchanged.

    Attributes:
        consumers: ``(len(counts), hidden, count · inner)``, in the weight's dtype.
        biases: ``(len(counts), hidden, biases)``, in the weight's dtype.
        notes: Remarks for people.
    """

    consumers: Tensor | None = None
    biases: Tensor | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StructuredPruner(Pruner):
    """Removes structures in one order for all counts; what it keeps may make up for them."""

    units: ClassVar[tuple[str, ...]] = ("width", "heads")

    @abstractmethod
    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return the structures in the order in which they are removed, ``(count,)`` int64.

        Args:
            weight: The unit's matrix in float32, see `StructureLayout`.
            evidence: What is known of it; ``evidence.structures`` is its shape.
            seed: Decides between equal scores.
        """

    def compensate(self, weight: Tensor, evidence: Evidence, removed: Tensor) -> Compensation:
        """Return the compensation for the removed structures; empty by default.

        Args:
            weight: The unit's matrix in float32.
            evidence: Evidence about the unit.
            removed: ``(levels, count)`` bool: more structures than are zero in the weight.
        """
        del weight, evidence, removed
        return Compensation()

    @torch.no_grad()
    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> StructuredVariants:
        """Return nested sets of removed structures, see `Pruner.prune`."""
        shape = get_structure_layout(evidence)
        table = check_table(counts, shape.items)
        if not weight.isfinite().all():
            raise NumericalError("the weight has NaN or Inf entries")
        empty = shape.empty(weight)
        order = self.order(weight.float(), evidence, seed)
        order = torch.cat([order[empty[order]], order[~empty[order]]])
        places = shape.places(order)
        removed = places[None] < torch.tensor(table, device=places.device)[:, None]
        found = self._compensated(weight, evidence, removed, int(empty.sum()))
        return StructuredVariants(
            counts=table,
            notes=found.notes,
            structures=shape,
            removed=removed,
            consumers=found.consumers,
            biases=found.biases,
        )

    def _compensated(
        self, weight: Tensor, evidence: Evidence, removed: Tensor, existing: int
    ) -> Compensation:
        """Return `compensate` of the levels that remove something, the weight of the others."""
        real = removed.sum(dim=1) > existing
        found = self.compensate(weight.float(), evidence, removed[real])
        shape = get_structure_layout(evidence)

        def spread(values: Tensor | None, unchanged: Tensor) -> Tensor | None:
            if values is None:
                return None
            full = unchanged.expand(len(removed), *unchanged.shape).clone()
            full[real] = values.to(full)
            if not full.isfinite().all():
                raise NumericalError(f"updated weights leave the range of {weight.dtype}")
            return full

        return Compensation(
            spread(found.consumers, shape.consumer(weight)),
            spread(found.biases, shape.bias(weight)),
            found.notes,
        )


def get_structure_layout(evidence: Evidence) -> StructureLayout:
    """Return the shape of a structured unit.

    Raises:
        ConfigError: The unit is not structured.
    """
    if evidence.structures is None:
        raise ConfigError("this pruner removes structures: choose --units width")
    return evidence.structures


def sort_by_score(score: Tensor, seed: int) -> Tensor:
    """Return structures by rising score, ``(count,)`` int64.

    Args:
        score: ``(count,)`` float32, not negative.
        seed: Decides between equal scores.

    Raises:
        NumericalError: A score is not finite.
    """
    if not score.isfinite().all():
        raise NumericalError("scores are not finite: weights or statistics have huge entries")
    none = torch.zeros_like(score, dtype=torch.bool)
    return build_sort_keys(
        score.float(), none, draw_tie_breaks(score.shape, seed, score.device)
    ).argsort()


def sum_columns(values: Tensor, shape: StructureLayout) -> Tensor:
    """Return the sum over each structure of one value for each input, ``(count,)``."""
    return values.view(shape.count, -1).sum(dim=1)
