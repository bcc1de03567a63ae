"""Wanda's scores of the dense model, reduced to one number for each block or unit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from sparsity_search.errors import NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.allocator import AllocationProblem
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Visit, walk

#: Kinds of units whose scores are those of one matrix.
KINDS = ("weights", "width", "heads")


def measure_scores(
    problem: AllocationProblem,
    measure: Callable[[list[Tensor]], float],
    *,
    per: str = "block",
) -> np.ndarray:
    """Return ``measure`` of the scores of each unit's block, in one dense pass.

    Args:
        problem: The dense model and the text.
        measure: Function of the scores of each unit, see `compute_unit_scores`.
        per: ``block`` for one number for all units of a block, ``linear`` for one each.

    Returns:
        ``(n_units,)`` float64.

    Raises:
        NumericalError: A score is not finite.
    """
    subject, found = problem.subject, dict[str, float]()
    for visit in walk(subject, problem.tokens, Statistic.NORM, rewritten=False):
        names = [unit.name for unit in visit.units]
        groups = [names] if per == "block" else [[name] for name in names]
        for group in filter(None, groups):
            value = measure([compute_unit_scores(subject, visit, name) for name in group])
            found.update(dict.fromkeys(group, value))
    return np.array([found[unit.name] for unit in subject.layout])


def compute_unit_scores(subject: PrunableModel, visit: Visit, name: str) -> Tensor:
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
