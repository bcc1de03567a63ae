"""Whether a search and the final comparison rank the same profiles alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from sparsity_search.runs.record import RunRecord


@dataclass(frozen=True)
class RankAgreement:
    """How two scores rank the same profiles.

    Attributes:
        names: The profiles, in the order of the search's scores, the best one first.
        searched: Their scores on the supernet, which the search compares.
        shipped: Their scores as rebuilt, on the final text.
    """

    names: tuple[str, ...]
    searched: tuple[float, ...]
    shipped: tuple[float, ...]

    @property
    def tau(self) -> float:
        """Kendall's rank correlation (tau-a): 1 for equal orders, -1 for reverse ones."""
        signs = [
            _compare(*pair) * _compare(*other)
            for pair, other in zip(
                combinations(self.searched, 2), combinations(self.shipped, 2), strict=True
            )
        ]
        return sum(signs) / len(signs)

    @property
    def reversed_pair(self) -> tuple[str, str] | None:
        """The profiles furthest apart in the final scores that the search ranks in reverse."""
        pairs = [
            (self.shipped[i] - self.shipped[j], self.names[i], self.names[j])
            for i, j in combinations(range(len(self.names)), 2)
            if self.searched[i] < self.searched[j] and self.shipped[j] < self.shipped[i]
        ]
        return max(pairs)[1:] if pairs else None


def measure_agreement(record: RunRecord) -> RankAgreement | None:
    """Return how the supernet and the final comparison rank the profiles that both scored.

    They are the starts of the first stage, rebuilt with the pruner that candidates are judged
    with. Fewer than two such profiles have no order.
    """
    judged = {
        step.name: step.score
        for step in record.steps
        if step.pruner == record.steps[0].pruner and step.score is not None
    }
    both = [
        (score, name, judged[name])
        for name, score in record.initial_scores.items()
        if name in judged
    ]
    if len(both) < 2:
        return None
    searched, names, shipped = zip(*sorted(both), strict=True)
    return RankAgreement(names, searched, shipped)


def tell_disagreement(record: RunRecord) -> str:
    """Return a sentence if the search and the comparison rank in other orders; else nothing."""
    found = measure_agreement(record)
    pair = None if found is None else found.reversed_pair
    if found is None or pair is None:
        return ""
    better, worse = pair
    return (
        f"The search ranks {better} before {worse}, the rebuilt models the other way round "
        f"(Kendall tau {found.tau:+.2f} over {len(found.names)} profiles): search with the final "
        "pruner (--pruner), or on more tokens (ladder.rungs)."
    )


def _compare(first: float, second: float) -> int:
    return (first > second) - (first < second)
