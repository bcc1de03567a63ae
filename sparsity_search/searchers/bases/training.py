"""Pairs of candidates and scores, and how well a predictor ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.searchers.bases.features import Features
from sparsity_search.searchers.bases.models import (
    FittedModel,
    ModelSettings,
    TrainingPairs,
    centre_groups,
    fit,
)
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import Fidelity, Measurement

#: Fewest scores of one fidelity in a round whose order is judged.
_FEWEST = 4


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Agreement of a round's scores with a model of the rounds before it.

    Attributes:
        round: Round of the study.
        tau: Kendall's tau-b of prediction and score.
        n: Number of candidates, all of the round's most frequent fidelity.
    """

    round: int
    tau: float
    n: int


@dataclass(frozen=True, slots=True)
class PredictionFigures:
    """Agreement of held-out scores with their predictions.

    Attributes:
        r2: Explained share of the variance; NaN if there is none.
        mae: Mean absolute error, in the unit of the targets.
        tau: Kendall's tau-b.
        n: Number of scores.
    """

    r2: float
    mae: float
    tau: float
    n: int


def drop_failed(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements with finite scores."""
    return [m for m in measurements if not m.failed]


def build_pairs(space: Space, measurements: Sequence[Measurement]) -> TrainingPairs:
    """Return the pairs of measurements with finite scores; each fidelity is a group."""
    levels = np.array([m.candidate for m in measurements], dtype=np.float64)
    numbers: dict[Fidelity, int] = {}
    groups = [numbers.setdefault(m.fidelity, len(numbers)) for m in measurements]
    scores = np.array([m.score.value for m in measurements])
    blocks = Features(space).blocks(levels.reshape(-1, space.n_genes))
    return TrainingPairs(blocks, log_scores(scores), np.array(groups, dtype=np.int64))


def log_scores(scores: np.ndarray) -> np.ndarray:
    """Return the logarithms of scores, or the scores if some are not positive."""
    return np.log(scores) if (scores > 0).all() else scores


def can_fit(pairs: TrainingPairs) -> bool:
    """Whether some two scores can be compared."""
    return len(pairs) > len(np.unique(pairs.groups))


def join(first: TrainingPairs, second: TrainingPairs) -> TrainingPairs:
    """Return the pairs of both, whose groups stay apart."""
    blocks = {n: np.concatenate([b, second.blocks[n]]) for n, b in first.blocks.items()}
    offset = int(first.groups.max(initial=-1)) + 1
    return TrainingPairs(
        blocks,
        np.concatenate([first.scores, second.scores]),
        np.concatenate([first.groups, second.groups + offset]),
    )


def correlate_ranks(
    pairs: TrainingPairs,
    rounds: Sequence[int],
    settings: ModelSettings,
    *,
    last: int | None = None,
    startup: int = 2,
    more: TrainingPairs | None = None,
) -> list[RankCorrelation]:
    """Predict each round with a model of the rounds before it, and compare the order.

    Args:
        pairs: The measurements, oldest first.
        rounds: Round of each pair.
        settings: The model. An ensemble of trees has one member here.
        last: Number of last rounds to judge; by default all.
        startup: Fewest measurements to fit a model to.
        more: Further pairs for every model.
    """
    of = np.array(rounds, dtype=np.int64)
    taus: list[RankCorrelation] = []
    for round_ in sorted(set(rounds), reverse=True):
        if last is not None and len(taus) == last:
            break
        before, now = np.flatnonzero(of < round_), np.flatnonzero(of == round_)
        seen = pairs[before] if more is None else join(pairs[before], more)
        if len(before) < startup or not can_fit(seen):
            break
        largest = np.bincount(pairs.groups[now]).argmax()
        held_out = pairs[now[pairs.groups[now] == largest]]
        if len(held_out) >= _FEWEST:
            predicted, _ = fit(seen, settings, round_).predict(held_out.blocks)
            tau = compute_kendall(predicted, held_out.scores)
            taus.append(RankCorrelation(round_, tau, len(held_out)))
    return taus[::-1]


def judge(model: FittedModel, pairs: TrainingPairs) -> PredictionFigures:
    """Return how well a model predicts held-out pairs, within their groups.

    A model knows no group's offset, so errors are taken from the group's mean.
    """
    predicted, _ = model.predict(pairs.blocks)
    columns = np.stack([predicted, pairs.scores], axis=1)
    within = centre_groups(columns, pairs.groups)
    error, total = within[:, 0] - within[:, 1], float(np.square(within[:, 1]).sum())
    return PredictionFigures(
        r2=1 - float(np.square(error).sum()) / total if total > 0 else np.nan,
        mae=float(np.abs(error).mean()) if len(pairs) else np.nan,
        tau=compute_kendall(predicted, pairs.scores, pairs.groups),
        n=len(pairs),
    )


def split_pairs(
    pairs: TrainingPairs, share: float, rng: np.random.Generator
) -> tuple[TrainingPairs, TrainingPairs]:
    """Return a random share of the pairs, and the others."""
    order = rng.permutation(len(pairs))
    n_first = round(share * len(pairs))
    return pairs[np.sort(order[:n_first])], pairs[np.sort(order[n_first:])]


def compute_kendall(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None
) -> float:
    """Return Kendall's tau-b of two rows of numbers; 0 where one is constant.

    Args:
        first: Numbers, ``(n,)``.
        second: Others, ``(n,)``.
        groups: Only numbers of one group are compared, ``(n,)``; by default all.

    >>> compute_kendall(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3]))
    0.6666666666666666
    """
    a, b = (np.sign(np.subtract.outer(x, x)) for x in (first, second))
    if groups is not None:
        a, b = (x * np.equal.outer(groups, groups) for x in (a, b))
    norm = float(np.sqrt(float(np.square(a).sum()) * float(np.square(b).sum())))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
