"""An accuracy predictor that learns from the candidates as they are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher, take_new
from sparsity_search.searchers.bases.dataset import MEASURED_ON, read_dataset
from sparsity_search.searchers.bases.features import Features
from sparsity_search.searchers.bases.models import (
    FittedModel,
    Kind,
    ModelSettings,
    Objective,
    TrainingPairs,
    fit,
)
from sparsity_search.searchers.bases.mutation import Mutation
from sparsity_search.searchers.bases.training import (
    RankCorrelation,
    build_pairs,
    can_fit,
    correlate_ranks,
    drop_failed,
    join,
)
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History, rank


@dataclass(frozen=True, kw_only=True)
class PredictorSearcher(Searcher):
    """Evolution whose offspring a predictor picks; it is refitted every round.

    A surrogate of the scores as in predictor-guided search (Ji et al., arXiv 2309.09507), but
    trained on the search's own measurements. Each round draws many offspring. It measures those
    with the lowest predicted score minus ``explore`` times its spread, and some that were not
    picked. While the predictor does not rank unseen candidates, the round is plain evolution.

    Args:
        model: ``"ridge"``, or trees of ``"xgboost"`` or ``"sklearn"``.
        objective: For xgboost: ``"rank"`` or ``"regression"``.
        members: Size of an ensemble of trees; ridge has a spread of its own.
        trees: Boosting rounds of each member.
        depth: Greatest depth of a tree.
        rate: Learning rate of the trees.
        pool: Offspring drawn for each one that is measured.
        random_share: Share of a round that is offspring without a pick.
        explore: Weight of the predicted spread, which favours candidates that are hard to predict.
        elite: Further parents: the best candidates at the highest fidelity.
        startup: Measurements before the first prediction, unless there is a data set.
        window: Last rounds whose rank correlation is averaged.
        threshold: Least mean Kendall tau. Below it the round is plain evolution.
        max_switches: Most switches in one mutation.
        strides: Levels that a switch moves, drawn for each offspring.
        within: Switch between any two genes (``"all"``), or two of the same ``"role"``.
        tournament: Offspring drawn for each unpicked one, by the first hint of the space.
        dataset: Path of a file of `sparsity-search predictor`, whose pairs join the fit.
    """

    model: Kind = "ridge"
    objective: Objective = "regression"
    members: int = 5
    trees: int = 100
    depth: int = 3
    rate: float = 0.1
    pool: int = 32
    random_share: float = 0.25
    explore: float = 1.0
    elite: int = 3
    startup: int = 24
    window: int = 4
    threshold: float = 0.1
    max_switches: int = 3
    strides: tuple[int, ...] = (1, 2, 4)
    within: Literal["all", "role"] = "all"
    tournament: int = 4
    dataset: str | None = None

    def __post_init__(self) -> None:
        for name in ("pool", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.elite < 0 or self.startup < 2:
            raise ConfigError("elite must not be negative, and startup be at least 2")
        if not 0 <= self.random_share <= 1:
            raise ConfigError(f"random_share must lie in [0, 1], not {self.random_share}")
        if not self.explore >= 0:
            raise ConfigError(f"explore must not be negative, not {self.explore}")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold must lie in [-1, 1], not {self.threshold}")
        _ = self._model, self._mutation
        if self.dataset is not None:
            read_dataset(Path(self.dataset))

    @cached_property
    def _model(self) -> ModelSettings:
        return ModelSettings(
            **{field.name: getattr(self, field.name) for field in fields(ModelSettings)}
        )

    @cached_property
    def _mutation(self) -> Mutation:
        return Mutation(
            max_switches=self.max_switches,
            strides=self.strides,
            within=self.within,
            tournament=self.tournament,
        )

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield the predictor's picks of a pool of offspring, then offspring as they are drawn.

        Raises:
            ConfigError: The data set does not fit the space.
        """
        pairs = self._collect_pairs(space, history)
        if self._trusts(space, history, pairs):
            model = fit(pairs, self._model, len(history.winners))
            ranked = self._rank(space, self._draw_pool(space, history, n, rng), model)
            yield from ranked[: n - round(self.random_share * n)]
        yield from self._mutation.children(space, history.survivors, rng)

    def _draw_pool(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """Return up to ``pool · n`` new offspring of the survivors and the elite."""
        parents = list(dict.fromkeys([*history.survivors, *self._select_elite(history)]))
        children = self._single.children(space, parents, rng)
        return take_new(children, n * self.pool, history.excluded)

    def _rank(
        self, space: Space, pool: Sequence[Candidate], model: FittedModel
    ) -> list[Candidate]:
        """Return a pool, best first by predicted score less ``explore`` times its spread."""
        if not pool:
            return []
        levels = np.array(pool, dtype=np.float64)
        mean, spread = model.predict(Features(space).blocks(levels))
        order = np.argsort(mean - self.explore * spread, kind="stable")
        return [pool[i] for i in order]

    def data_digest(self) -> str | None:
        """Return the digest of the data set, if there is one."""
        return read_dataset(Path(self.dataset)).digest if self.dataset else None

    def data_model(self) -> Mapping[str, Any] | None:
        """Return the data set's record of its model, if there is one."""
        return read_dataset(Path(self.dataset)).facts.get(MEASURED_ON) if self.dataset else None

    def report(self, space: Space, history: History) -> list[RankCorrelation]:
        """Return how well a model of the earlier rounds predicts each round, oldest first.

        The models are fitted anew, with one member of trees.
        """
        return self._correlate(space, history, None)

    def notes(self, space: Space, history: History) -> tuple[str, ...]:
        """Return `report` as a line for people; none if no round could be predicted."""
        taus = ", ".join(f"{r.round}: {r.tau:.2f}" for r in self.report(space, history))
        return (f"held-out Kendall tau of the predictor by round: {taus}",) if taus else ()

    @property
    def _single(self) -> Mutation:
        """Mutation without a tournament, since the model picks from the pool."""
        return Mutation(
            max_switches=self.max_switches, strides=self.strides, within=self.within, tournament=1
        )

    def _trusts(self, space: Space, history: History, pairs: TrainingPairs) -> bool:
        """Whether the predictor picks this round's candidates."""
        known = 0 if self.dataset else self.startup
        if not history.survivors or len(pairs) < known or not can_fit(pairs):
            return False
        last = self._correlate(space, history, self.window)
        return not last or float(np.mean([entry.tau for entry in last])) >= self.threshold

    def _correlate(
        self, space: Space, history: History, last: int | None
    ) -> list[RankCorrelation]:
        alive = drop_failed(history.measurements)
        return correlate_ranks(
            build_pairs(space, alive),
            [m.round for m in alive],
            ModelSettings(**{**vars(self._model), "members": 1}),
            last=last,
            startup=2 if self.dataset else self.startup,
            more=self._read_more(space),
        )

    def _read_more(self, space: Space) -> TrainingPairs | None:
        return read_dataset(Path(self.dataset)).pairs(space) if self.dataset else None

    def _collect_pairs(self, space: Space, history: History) -> TrainingPairs:
        pairs, more = build_pairs(space, drop_failed(history.measurements)), self._read_more(space)
        return pairs if more is None else join(pairs, more)

    def _select_elite(self, history: History) -> list[Candidate]:
        """Return the best candidates at the highest fidelity, in its latest draw."""
        alive = drop_failed(history.measurements)
        highest = max(reversed(alive), key=lambda m: m.fidelity.tokens).fidelity
        best = rank(m for m in alive if m.fidelity == highest)
        return [m.candidate for m in best[: self.elite]]
