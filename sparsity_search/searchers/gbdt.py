"""The published accuracy predictor: measure at random, fit trees once, search on the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.bases.features import by_role
from sparsity_search.searchers.bases.models import Boosted, ModelSettings, Pairs
from sparsity_search.searchers.bases.training import Figures, can_fit, figures, split, targets
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History, Measurement
from sparsity_search.utils.files import digest
from sparsity_search.utils.random import generator

#: Random candidates in a row that are not new, before no more are drawn.
_MISSES = 40
#: Range of a gene's random levels, in spreads.
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class GbdtSearcher(Searcher):
    """Boosted trees fitted once to random candidates, and searched at random.

    Ji, Cao and Liu, arXiv 2309.09507. First ``pairs`` random candidates are measured, the first
    ``tied_share`` of them with one level for each run of ``tied`` neighbours of a role. Trees are
    fitted to ``train_share`` of these pairs. Then the genes' ranges follow their importance (gain
    of the trees), ``samples`` random candidates are predicted, and the ``finalists`` best are
    measured; that ends the study. Ranges are in spreads about the uniform level; the defaults are
    those of the paper, whose rates start in 0.1 to 0.5 about 0.3. What it chose by hand is a rule
    here, and its trees' settings, which it does not tell, are ours.

    Where the ladder has several rungs, the cheapest one is learned, since every candidate has it.

    Args:
        pairs: Candidates to learn from (525 in the paper).
        tied: Neighbours of one role that share a level; balancing may part them by one.
        tied_share: Share of the pairs that are tied so (400 of 525).
        spread: Half the range of random levels; parameters have their whole range.
        train_share: Share of the pairs that trees see; the others are for the report.
        important_share: Share of the genes that get the range ``important``.
        unimportant_share: Share of the genes that get the range ``unimportant``.
        important: Range of the genes with the greatest importance.
        unimportant: Range of those with the least; the others keep ``(-1, 1)``.
        samples: Candidates that are predicted.
        finalists: Predicted best to measure.
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
        left = self.pairs - len(_measured(history))
        wanted = min(n, left if left > 0 else self.finalists + left)
        return super().ask(space, history, wanted, rng) if wanted > 0 else []

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield random candidates until there are enough pairs, then the samples, best first."""
        del n
        measured = _measured(history)
        if len(measured) < self.pairs:
            return self._at_random(space, history.seen, len(measured), rng)
        return iter(self._ranked(space, measured[: self.pairs], history.seen))

    def fallback(self, space: Space, rng: np.random.Generator) -> Iterator[Candidate]:
        """Yield nothing: the study ends with the protocol."""
        del space, rng
        return iter(())

    def report(self, space: Space, history: History) -> Figures | None:
        """Return how well the held-out pairs are predicted; None before all are measured."""
        measured = _measured(history)
        if len(measured) < self.pairs:
            return None
        found = self._fitted(space, measured[: self.pairs])
        return None if found is None else figures(found.model, found.held_out)

    def notes(self, space: Space, history: History) -> tuple[str, ...]:
        """Return `report` as a line for people; none before there is one."""
        found = self.report(space, history)
        if found is None:
            return ()
        judged = f"R2 {found.r2:.3f}, MAE {found.mae:.4g}, Kendall tau {found.tau:.3f}"
        return (f"predictor, {found.n} held-out pairs: {judged}",)

    def _at_random(
        self, space: Space, seen: Set[Candidate], n_pairs: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield random candidates, tied while there are too few tied pairs.

        The last of them are `_MISSES` in a row that are not new. After half as many, candidates
        are no longer tied.
        """
        middle, half = _ranges(space, self.spread)
        runs, n_tied = _runs(space, self.tied), round(self.tied_share * self.pairs)
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

    def _ranked(
        self, space: Space, measured: Sequence[Measurement], seen: Set[Candidate]
    ) -> list[Candidate]:
        """Return the unmeasured samples of the reshaped space, predicted best first.

        They are the same in each round of finalists: their seed is what was measured.
        """
        fitted = self._fitted(space, measured)
        if fitted is None:
            return []
        rng = generator(0, "samples", digest([m.candidate for m in measured]))
        low, high = self.ranges(fitted.importance)
        middle, half = _ranges(space, self.spread)
        drawn = middle + half * rng.uniform(low, high, (self.samples, space.n_genes))
        found = [c for c in dict.fromkeys(map(space.balance, drawn)) if c not in seen]
        if not found:
            return []
        predicted, _ = fitted.model.predict({"levels": np.array(found, dtype=np.float64)})
        return [found[i] for i in np.argsort(predicted, kind="stable")]

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

    def _fitted(self, space: Space, measured: Sequence[Measurement]) -> _Fitted | None:
        """Return the trees; None where too few candidates did not fail."""
        alive = [m for m in measured if not m.failed]
        fidelities = list(dict.fromkeys(m.fidelity for m in alive))
        pairs = Pairs(
            {"levels": np.array([m.candidate for m in alive], float).reshape(-1, space.n_genes)},
            targets(np.array([m.score.value for m in alive])),
            np.array([fidelities.index(m.fidelity) for m in alive], dtype=np.int64),
        )
        rng = generator(0, "split", digest([m.candidate for m in measured]))
        train, held_out = split(pairs, self.train_share, rng)
        if not can_fit(train):
            return None
        model = Boosted.fit(train, self._model, 0)
        return _Fitted(model, held_out, model.importance(space.n_genes))


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Trees, what they have not seen, and how much they gain from each gene."""

    model: Boosted
    held_out: Pairs
    importance: np.ndarray


def _ranges(space: Space, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each gene's random levels and half their range, ``(n_genes,)`` each.

    Parameters have no uniform level to spread about: theirs is the whole range.
    """
    low, high = space.random_range(spread)
    return (low + high) / 2, (high - low) / 2


def _measured(history: History) -> list[Measurement]:
    """Return the first measurement of each new candidate, oldest first; none of round 0.

    It is the one at the lowest rung, where every new candidate starts.
    """
    found: dict[Candidate, Measurement] = {}
    known = {m.candidate for m in history.measurements if m.round == 0}
    for m in history.measurements:
        if m.candidate not in known:
            found.setdefault(m.candidate, m)
    return list(found.values())


def _runs(space: Space, tied: int) -> np.ndarray:
    """Return for each gene the first one of its run of neighbours of one role, ``(n_genes,)``."""
    found = np.zeros(space.n_genes, dtype=np.int64)
    for genes in by_role(space.roles):
        for place, gene in enumerate(genes):
            found[gene] = genes[place - place % tied]
    return found
