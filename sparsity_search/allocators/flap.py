"""FLAP's global ranking: channels and heads of all layers compete by standardised scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.evidence.fluctuation import check_metric, compute_input_scores
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Visit, walk
from sparsity_search.profiles.budget import Bounds


@dataclass(frozen=True, kw_only=True)
class FLAPAllocator(Allocator):
    """One ranking of all structures of the model, by FLAP's standardised fluctuation.

    FLAP (An et al., AAAI 2024, arXiv 2312.11983, section 3.3; ``AL-AM`` in the released code).
    Each unit's scores of its consumer's inputs are brought to mean 0 and standard deviation 1; a
    structure has the mean of its inputs. So heads, which are means of many inputs, lie closer to
    0 than channels. Structures of all units go by rising score, at the weights that they really
    hold (the published price of a head is that of a model without key-value groups), as long as
    they fit the budget; one that does not fit is passed over. The released code squares the
    attention's scores first. The paper does not, nor is it done here.

    Attributes:
        metric: ``WIFV``, ``IFV`` or ``WIFN``, see `evidence.fluctuation.input_scores`.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads")
    experimental: ClassVar[str] = (
        "perplexity at 25% 1.42 times that of the FLAP pruner with a uniform profile "
        "(SmolLM2-135M)"
    )

    metric: str = "WIFV"

    def __post_init__(self) -> None:
        check_metric(self.metric)

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from one pass of the text through the dense model.

        Raises:
            NumericalError: A weight or an input is not finite.
        """
        subject, layout = problem.subject, problem.layout
        scores = {
            unit.name: compute_structure_scores(subject, visit, unit.name, self.metric)
            for visit in walk(subject, problem.tokens, Statistic.NORM, rewritten=False)
            for unit in visit.units
        }
        ranked = [scores[unit.name] for unit in layout]
        counts = count_cut_structures(ranked, layout.costs, problem.bounds, problem.n_removed)
        return np.asarray(counts / layout.counts)


def compute_structure_scores(
    subject: PrunableModel, visit: Visit, name: str, metric: str
) -> np.ndarray:
    """Return the standardised scores of a unit's structures, ``(count,)`` float64.

    Structures that are zeros already have ``-inf``.
    """
    view, shape = subject.views[name], visit.evidence[name].structures
    assert shape is not None
    weight = view.read()
    scores = compute_input_scores(shape.consumer(weight).float(), visit.statistics[name], metric)
    means = standardise_scores(scores.double().cpu()).view(shape.count, -1).mean(dim=1)
    return np.asarray(means.masked_fill(shape.empty(weight).cpu(), -np.inf))


def standardise_scores(scores: Tensor) -> Tensor:
    """Return scores of mean 0 and sample standard deviation 1; zeros if all are equal.

    The deviation divides by n - 1, as `torch.std` in the released code.

    >>> import torch
    >>> standardise_scores(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [-1.0, 0.0, 1.0]
    """
    centred = scores - scores.mean()
    spread = (centred.square().sum() / max(1, len(scores) - 1)).sqrt()
    return centred / spread if spread > 0 else centred


def count_cut_structures(
    scores: Sequence[np.ndarray], costs: np.ndarray, bounds: Bounds, n_removed: int
) -> np.ndarray:
    """Return how many structures of each unit go, ``(n_units,)`` int64.

    Structures go by rising score, earlier units first where scores are equal, each unless its
    cost no longer fits; a unit's first ``bounds.lower`` go before all, and none after
    ``bounds.upper``.

    Args:
        scores: Those of each unit's structures, in any order.
        costs: Weights of a structure of each unit, ``(n_units,)``.
        bounds: Fewest and most of each unit.
        n_removed: Weights to remove at most, and at least what ``bounds.lower`` costs.

    >>> count_cut_structures([np.array([0.1, 0.3]), np.array([0.2, 0.4])], np.array([1, 1]),
    ...     Bounds(lower=np.array([0, 0]), upper=np.array([2, 2])), 3).tolist()
    [2, 1]
    """
    removed = bounds.lower.copy()
    left = n_removed - int(removed @ costs)
    free = [
        np.sort(s)[low:high] for s, low, high in zip(scores, removed, bounds.upper, strict=True)
    ]
    units = np.repeat(np.arange(len(free)), [len(part) for part in free])
    for unit in units[np.concatenate(free).argsort(kind="stable")]:
        if costs[unit] <= left:
            removed[unit] += 1
            left -= int(costs[unit])
    return removed
