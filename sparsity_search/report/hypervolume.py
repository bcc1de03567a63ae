"""Fronts of two objectives: sparsity and score. Numbers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class FrontPoint(NamedTuple):
    """A profile in the plane of both objectives.

    Attributes:
        sparsity: The more the better.
        score: The lower the better.
        name: Name of the profile.
    """

    sparsity: float
    score: float
    name: str = ""


def select_front(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Return the points that no other one is at least as good as in both, by rising sparsity.

    Of equal points the first stays.

    >>> select_front([FrontPoint(0.5, 1.0), FrontPoint(0.4, 2.0), FrontPoint(0.6, 3.0)])
    [FrontPoint(sparsity=0.5, score=1.0, name=''), FrontPoint(sparsity=0.6, score=3.0, name='')]
    """
    found: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (-p.sparsity, p.score)):
        if not found or point.score < found[-1].score:
            found.append(point)
    return found[::-1]


def compute_hypervolume(points: Iterable[FrontPoint], worst: float) -> float:
    """Return the area that points dominate, from sparsity 0 and a worst score on.

    Args:
        points: Any; those that are no better than the worst score count nothing.
        worst: The score of the reference point.
    """
    area, reached = 0.0, 0.0
    for point in select_front(p for p in points if p.score < worst):
        area += (point.sparsity - reached) * (worst - point.score)
        reached = point.sparsity
    return area


def trace_hypervolume(
    runs: Sequence[tuple[float, Sequence[tuple[float, float]]]], worst: float
) -> list[tuple[float, float]]:
    """Return how the hypervolume grew while one search followed the other.

    Args:
        runs: The sparsity of each search, and the course of its best score: seconds of its
            own, and the score then.
        worst: The score of the reference point.

    Returns:
        Seconds over all searches, and the hypervolume then.
    """
    best: dict[float, float] = {}
    found, before = [], 0.0
    for sparsity, falls in runs:
        for seconds, score in falls:
            best[sparsity] = min(score, best.get(sparsity, score))
            points = (FrontPoint(s, b) for s, b in best.items())
            found.append((before + seconds, compute_hypervolume(points, worst)))
        before += max((seconds for seconds, _ in falls), default=0.0)
    return found
