"""Optuna's samplers: TPE, Gaussian process, NSGA-II, quasi-random, random."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, create_trial

from sparsity_search.errors import ConfigError, suggest_name
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import Fidelity, History, Measurement

#: Samplers, and whether they learn from what was measured.
_SAMPLERS = {"tpe": True, "gp": True, "nsgaii": True, "qmc": False, "random": False}
#: Where NSGA-II looks for its parents: all that was measured is one generation.
_GENERATION = "NSGAIISampler:generation"


@dataclass(frozen=True, kw_only=True)
class OptunaSearcher(Searcher):
    """A sampler of Optuna (Akiba et al. 2019, arXiv 1907.10902), for few parameters.

    Each round makes a new Optuna study in memory from the history, and asks it. A gene is an
    integer parameter, or a categorical one if its values have no order. In a space of levels the
    proposals are balanced to the budget, which the sampler does not know; for hundreds of genes
    use another searcher.

    Scores on different tokens are never mixed. The sampler gets the scores of the fidelity with
    most tokens that has enough candidates: at least ``startup``, and more than there are genes
    (similar to BOHB, Falkner et al. 2018, arXiv 1807.01774). If no fidelity has enough, it gets
    those of the fidelity with most candidates. With ``ladder.fresh`` every round is a fidelity of
    its own, so a sampler learns from one round only. A failed candidate counts as the worst one
    that did not fail.

    ``cmaes`` is left out: its state is in its optimiser, which Optuna pickles, and not in the
    trials, so a study that starts anew each round would lose it.

    Args:
        sampler: ``tpe`` (tree-structured Parzen estimators), ``gp`` (Gaussian process; needs
            torch; seconds for each candidate), ``nsgaii`` (crossover among the ``startup`` best),
            ``qmc`` (a scrambled Sobol set in each round) or ``random``. The last two do not
            learn.
        startup: Candidates, on equal tokens, before a sampler that learns begins. Until then
            candidates are random.
    """

    sampler: str = "tpe"
    startup: int = 10

    def __post_init__(self) -> None:
        if self.sampler not in _SAMPLERS:
            raise ConfigError(f"sampler {self.sampler!r}: {suggest_name(self.sampler, _SAMPLERS)}")
        if self.startup < 2:
            raise ConfigError(f"startup must be at least 2, not {self.startup}")

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield ``4 n`` proposals of the sampler; none before it begins."""
        seed = int(rng.integers(2**31))
        known = select_fidelity(history, max(self.startup, space.n_genes + 1))
        waits = _SAMPLERS[self.sampler] and len(known) < self.startup
        if waits or all(m.failed for m in known):
            return
        distributions = _build_distributions(space)
        with _silence():
            study = self._build_study(distributions, known, seed)
        for _ in range(4 * n):
            with _silence():
                values = study.ask(distributions).params
            yield space.balance(np.array([values[name] for name in distributions]))

    def _build_study(
        self,
        distributions: Mapping[str, BaseDistribution],
        measured: Sequence[Measurement],
        seed: int,
    ) -> optuna.Study:
        study = optuna.create_study(sampler=self._build_sampler(seed))
        worst = max(m.score.value for m in measured if not m.failed)
        study.add_trials(
            [
                _build_trial(m.candidate, worst if m.failed else m.score.value, distributions)
                for m in measured
            ]
        )
        return study

    def _build_sampler(self, seed: int) -> BaseSampler:
        samplers = optuna.samplers
        match self.sampler:
            case "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=0)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=0)
            case "nsgaii":
                return samplers.NSGAIISampler(seed=seed, population_size=self.startup)
            case "qmc":
                return samplers.QMCSampler(seed=seed, scramble=True)
            case _:
                return samplers.RandomSampler(seed=seed)


def select_fidelity(history: History, enough: int) -> list[Measurement]:
    """Return the measurements of one fidelity, one for each candidate, in order.

    It is the fidelity with most tokens that has at least ``enough`` candidates. If none has, it
    is the one with most candidates, and among equal ones that with more tokens, then the later
    draw.
    """
    groups: dict[Fidelity, dict[Candidate, Measurement]] = {}
    for m in history.measurements:
        groups.setdefault(m.fidelity, {}).setdefault(m.candidate, m)

    def rank(fidelity: Fidelity) -> tuple[int, int, int]:
        return min(len(groups[fidelity]), enough), fidelity.tokens, fidelity.subset

    return list(groups[max(groups, key=rank)].values()) if groups else []


def _build_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distribution of each gene by its number."""
    distributions: dict[str, BaseDistribution] = {}
    for gene, (low, high) in enumerate(zip(space.limits.lower, space.limits.upper, strict=True)):
        distributions[str(gene)] = (
            CategoricalDistribution(range(int(low), int(high) + 1))
            if gene in space.unordered
            else IntDistribution(int(low), int(high))
        )
    return distributions


def _build_trial(
    candidate: Candidate, value: float, distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    return create_trial(
        value=value,
        params=dict(zip(distributions, candidate, strict=True)),
        distributions=dict(distributions),
        system_attrs={_GENERATION: 0},
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Silence Optuna's messages about studies and experimental samplers."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
