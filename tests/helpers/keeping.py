"""Models that keep their statistics, and all that a walk over them tells, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.identity import identify
from sparsity_search.models.running.statistics_cache import StatisticsCache
from sparsity_search.models.running.walk import Visit, walk


def keeping(folder: Path, model: nn.Module, **options: Any) -> PrunableModel:
    return PrunableModel(model, kept=StatisticsCache(folder, identify(model, None)), **options)


def plain(subject: PrunableModel, **options: Any) -> PrunableModel:
    return PrunableModel(subject.model, subject.exclude, subject.units, **options)


def visits_of(
    subject: PrunableModel, tokens: Tensor, statistic: Statistic = Statistic.NORM, **options: Any
) -> list[Visit]:
    return list(walk(subject, tokens, statistic, rewritten=False, **options))


def told(visits: list[Visit]) -> list[Any]:
    """Return all that visits tell, to the bit and in order; equal places stand for one object."""
    return [
        (
            *(visit.block, visit.units, visit.notes, visit.last),
            [(name, _sums(s), _place(visit, s)) for name, s in visit.statistics.items()],
            [(name, _evidence(visit, e)) for name, e in visit.evidence.items()],
        )
        for visit in visits
    ]


def _place(visit: Visit, statistics: InputStatistics | None) -> int | None:
    if statistics is None:
        return None
    return [id(s) for s in visit.statistics.values()].index(id(statistics))


def _sums(s: InputStatistics) -> tuple[Any, ...]:
    sums = [(t.dtype, t.tolist()) for t in s.tensors().values()]
    return s.statistic, s.n_inputs, s.n_tokens, s.device, sums


def _evidence(visit: Visit, evidence: Evidence) -> tuple[Any, ...]:
    ids = [_place(visit, s) for s in (evidence.inputs, evidence.following)]
    more = [
        {key: (value.dtype, value.tolist()) for key, value in vars(found).items()}
        for found in (evidence.gradient, evidence.routing)
        if found is not None
    ]
    return ids, more, evidence.structures
