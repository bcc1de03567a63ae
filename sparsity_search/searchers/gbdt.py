"""The published accuracy predictor: measure at random, fit trees once, search on the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.bases.features import group_by_role
from sparsity_search.searchers.bases.models import BoostedModel, ModelSettings, TrainingPairs
from sparsity_search.searchers.bases.training import (
    PredictionFigures,
    can_fit,
    judge,
    log_scores,
    split_pairs,
)
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History, Measurement
from sparsity_search.utils.files import compute_digest
from sparsity_search.utils.random import create_generator

#: Random candidates in a row that are not new, before no more are drawn.
_MISSES = 40
#: Range of a gene's random levels, in spreads.
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class GbdtSearcher(Searcher):
    """Boosted trees fitted once to random candidates, and searched at random.

    Ji, Cao and Liu, arXiv 2309.09507, in three steps:

    1. Measure ``pairs`` random candidates. The first ``tied_share`` of them have one level for
       each run of ``tied`` neighbours of a role.
    2. Fit trees to ``train_share`` of these pairs, and reshape the genes' ranges by importance
       (gain of the trees).
    3. Predict ``samples`` random candidates and measure the ``finalists`` best. The study ends.

    Ranges are in spreads about the uniform level. The defaults are the paper's, whose rates start
    in 0.1 to 0.5 about 0.3. The paper reshaped its ranges by hand, here it is a rule; it gives no
    settings of its trees, so they are ours. With several rungs the scores of the cheapest one are
    learned, since every candidate has one.

    Args:
        pairs: Candidates to learn from (525 in the paper).
        tied: Neighbours of one role that share a level; balancing may part them by one.
        tied_share: Share of the pairs that are tied so (400 of 525).
        spread: Half the range of random levels; parameters have their whole range.
        train_share: Share of the pairs that trees are fitted to; the others are for the report.
        important_share: Share of the genes that get the range ``important``.
        unimportant_share: Share of the genes that get the range ``unimportant``.
        important: Range of the genes with the greatest importance.
        unimportant: Range of the genes with the least; the others keep ``(-1, 1)``.
        samples: Candidates to predict.
        finalists: Candidates to measure, the best predicted ones.
        trees: Boosting rounds.
        depth: Greatest depth of a tree.
        rate: Learning rate.
    """

    pairs: int = 525
    tied: int = 4
    tied_share: float = 400 / 525
    spread: float = 4.0
    train_share: float = 0.7
    important_share: float = 0.3
    unimportant_share: float = 0.25
    important: Range = (-1.0, 0.0)
    unimportant: Range = (-0.5, 2.0)
    samples: int = 10_000
    finalists: int = 18
    trees: int = 200
    depth: int = 4
    rate: float = 0.05

    experimental: ClassVar[str] = (
        "its trees rank the candidates of a search worse than the model of `predictor` does, see "
        "docs/predictor.md"
    )

    def __post_init__(self) -> None:
        for name, least in (("pairs", 4), ("tied", 1), ("samples", 1), ("finalists", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("tied_share", "important_share", "unimportant_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.important_share + self.unimportant_share > 1:
            raise ConfigError("important_share and unimportant_share must not exceed 1 together")
        if not self.spread > 0 or not 0 < self.train_share <= 1:
            raise ConfigError("spread must be positive, and train_share lie in (0, 1]")
        for name in ("important", "unimportant"):
            limits = getattr(self, name)
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise ConfigError(f"{name} must be LOW, HIGH with LOW < HIGH, not {limits}")
        _ = self._model

    @cached_property
    def _model(self) -> ModelSettings:
        return ModelSettings(
            model="xgboost", members=1, trees=self.trees, depth=self.depth, rate=self.rate
        )

    def ask(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Sequence[Candidate]:
        """Return random pairs, later the finalists; none when all of these were measured."""
        left = self.pairs - len(_select_first(history))
        wanted = min(n, left if left > 0 else self.finalists + left)
        return super().ask(space, history, wanted, rng) if wanted > 0 else []

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield random candidates until there are enough pairs, then the samples, best first."""
        del n
        measured = _select_first(history)
        if len(measured) < self.pairs:
            return self._draw(space, history.seen, len(measured), rng)
        return iter(self._rank(space, measured[: self.pairs], history.seen))

    def fallback(self, space: Space, rng: np.random.Generator) -> Iterator[Candidate]:
        """Yield nothing: the study ends with the protocol."""
        del space, rng
        return iter(())

    def report(self, space: Space, history: History) -> PredictionFigures | None:
        """Return how well the held-out pairs are predicted; None before all are measured."""
        measured = _select_first(history)
        if len(measured) < self.pairs:
            return None
        fitted = self._fit(space, measured[: self.pairs])
        return None if fitted is None else judge(fitted.model, fitted.held_out)

    def notes(self, space: Space, history: History) -> tuple[str, ...]:
        """Return `report` as a line for people; none before there is one."""
        report = self.report(space, history)
        if report is None:
            return ()
        figures = f"R2 {report.r2:.3f}, MAE {report.mae:.4g}, Kendall tau {report.tau:.3f}"
        return (f"predictor, {report.n} held-out pairs: {figures}",)

    def _draw(
        self, space: Space, seen: Set[Candidate], n_pairs: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield random candidates, tied while there are too few tied pairs.

        The last of them are `_MISSES` in a row that are not new. After half as many, candidates
        are no longer tied.
        """
        middle, half = _find_spans(space, self.spread)
        runs, n_tied = _tie_genes(space, self.tied), round(self.tied_share * self.pairs)
        known, misses = set(seen), 0
        while misses < _MISSES:
            drawn = rng.uniform(-1, 1, space.n_genes)
            if n_pairs < n_tied and misses < _MISSES / 2:
                drawn = drawn[runs]
            candidate = space.balance(middle + half * drawn)
            is_new = candidate not in known
            n_pairs, misses = n_pairs + is_new, 0 if is_new else misses + 1
            known.add(candidate)
            yield candidate

    def _rank(
        self, space: Space, measured: Sequence[Measurement], seen: Set[Candidate]
    ) -> list[Candidate]:
        """Return the unmeasured samples of the reshaped space, predicted best first.

        Each round of finalists has the same samples, whose seed is a digest of the pairs.
        """
        fitted = self._fit(space, measured)
        if fitted is None:
            return []
        rng = create_generator(0, "samples", compute_digest([m.candidate for m in measured]))
        low, high = self.ranges(fitted.importance)
        middle, half = _find_spans(space, self.spread)
        drawn = middle + half * rng.uniform(low, high, (self.samples, space.n_genes))
        new = [c for c in dict.fromkeys(map(space.balance, drawn)) if c not in seen]
        if not new:
            return []
        predicted, _ = fitted.model.predict({"levels": np.array(new, dtype=np.float64)})
        return [new[i] for i in np.argsort(predicted, kind="stable")]

    def ranges(self, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the range of each gene after the fit, in spreads: two rows of ``(n_genes,)``.

        Args:
            importance: Of each gene, ``(n_genes,)``.
        """
        order = np.argsort(-importance, kind="stable")
        limits = np.tile([-1.0, 1.0], (len(importance), 1))
        limits[order[: round(self.important_share * len(order))]] = self.important
        last = round(self.unimportant_share * len(order))
        limits[order[len(order) - last :]] = self.unimportant
        return limits[:, 0], limits[:, 1]

    def _fit(self, space: Space, measured: Sequence[Measurement]) -> _Fitted | None:
        """Return the fitted trees; None if too few scores are finite."""
        alive = [m for m in measured if not m.failed]
        fidelities = list(dict.fromkeys(m.fidelity for m in alive))
        pairs = TrainingPairs(
            {"levels": np.array([m.candidate for m in alive], float).reshape(-1, space.n_genes)},
            log_scores(np.array([m.score.value for m in alive])),
            np.array([fidelities.index(m.fidelity) for m in alive], dtype=np.int64),
        )
        rng = create_generator(0, "split", compute_digest([m.candidate for m in measured]))
        train, held_out = split_pairs(pairs, self.train_share, rng)
        if not can_fit(train):
            return None
        model = BoostedModel.fit(train, self._model, 0)
        return _Fitted(model, held_out, model.importance(space.n_genes))


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Trees, held-out pairs, and the gain of the trees' splits by each gene."""

    model: BoostedModel
    held_out: TrainingPairs
    importance: np.ndarray


def _find_spans(space: Space, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each gene's random levels and half their range, ``(n_genes,)`` each.

    Parameters have no uniform level, so they get their whole range.
    """
    low, high = space.random_range(spread)
    return (low + high) / 2, (high - low) / 2


def _select_first(history: History) -> list[Measurement]:
    """Return the first measurement of each candidate after round 0, oldest first.

    It is that of the lowest rung, where every new candidate starts.
    """
    first: dict[Candidate, Measurement] = {}
    initial = {m.candidate for m in history.measurements if m.round == 0}
    for m in history.measurements:
        if m.candidate not in initial:
            first.setdefault(m.candidate, m)
    return list(first.values())


def _tie_genes(space: Space, tied: int) -> np.ndarray:
    """Return for each gene the first one of its run of neighbours of one role, ``(n_genes,)``."""
    first = np.zeros(space.n_genes, dtype=np.int64)
    for genes in group_by_role(space.roles):
        for place, gene in enumerate(genes):
            first[gene] = genes[place - place % tied]
    return first
