"""What the allocators by Wanda's scores share: one number for each block of the dense model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Visit, walk

#: Kinds of units whose scores are those of one matrix.
KINDS = ("weights", "width", "heads")


def check_kind(subject: PrunableModel) -> None:
    """Check that the units' weights can be scored.

    Raises:
        ConfigError: The units are whole sublayers, blocks or experts.
    """
    if subject.units not in KINDS:
        raise ConfigError(
            f"this allocator scores weights: choose --units {', '.join(KINDS[:-1])} or "
            f"{KINDS[-1]}, not {subject.units}"
        )


def measured(
    subject: PrunableModel,
    tokens: Tensor,
    measure: Callable[[list[Tensor]], float],
    *,
    per: str = "block",
) -> np.ndarray:
    """Return what ``measure`` makes of the scores of each unit's block, in one dense pass.

    Args:
        subject: The dense model.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        measure: Takes the scores of each unit, see `unit_scores`.
        per: ``block`` for one number for all units of a block, ``linear`` for one each.

    Returns:
        ``(n_units,)`` float64.

    Raises:
        NumericalError: A score is not finite.
    """
    found: dict[str, float] = {}
    for visit in walk(subject, tokens, Statistic.NORM, rewritten=False):
        names = [unit.name for unit in visit.units]
        groups = [names] if per == "block" else [[name] for name in names]
        for group in filter(None, groups):
            value = measure([unit_scores(subject, visit, name) for name in group])
            found.update(dict.fromkeys(group, value))
    return np.array([found[unit.name] for unit in subject.layout])


def unit_scores(subject: PrunableModel, visit: Visit, name: str) -> Tensor:
    """Return ``|W_ij| · rms(x_j)`` of a unit, flat, in float32.

    Where structures are removed, ``W`` is their consumer: only its inputs are known.

    Raises:
        NumericalError: A score is not finite.
    """
    view = subject.views[name]
    weight = view.read()
    weight = weight if view.structures is None else view.structures.consumer(weight)
    norms = visit.statistics[name].norms().to(weight.device)
    scores = (weight.float().abs() * norms).flatten()
    if not scores.isfinite().all():
        raise NumericalError(
            f"{name}: scores are not finite: weights or activations are too large"
        )
    return scores
