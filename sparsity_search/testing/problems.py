"""Toy search problems with a known optimum, and a store in memory. Numbers only, no torch."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.choices import list_pattern_counts, option_prices
from sparsity_search.spaces.even_levels import EvenLevels
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.spaces.parameters import Parameter, spaced, stepped
from sparsity_search.spaces.parametric import ParametricSpace, RefusedSettingError
from sparsity_search.spaces.pattern_levels import CountLevels, PatternLevels
from sparsity_search.spaces.prices import PriceCurve, Prices
from sparsity_search.spaces.space import Space
from sparsity_search.spaces.step_levels import ShareLevels, StepLevels
from sparsity_search.study.study import Limits, Study
from sparsity_search.trials.history import Fidelity, History, Measurement, Score
from sparsity_search.trials.ladder import Ladder, Rung
from sparsity_search.utils.random import create_generator

#: Tokens that one part of a toy score stands for.
ROW = 64
ROLES = ("q", "k", "up", "down")

#: Saving of each option in a toy space of options, as a fraction of a unit.
SAVINGS = {"2:4": 0.5, "4:8": 0.25}

TOY_LADDER = Ladder(candidates=8, rungs=(Rung(ROW, 3), Rung(4 * ROW, 1)))


def toy_layout(*counts: int, cost: int | Sequence[int] = 1, zeros: int = 0) -> Layout:
    """Return a layout of units with these counts: roles in turn, four units a block."""
    costs = [cost] * len(counts) if isinstance(cost, int) else cost
    return Layout(
        [
            Unit(
                name=f"layers.{i // 4}.{ROLES[i % 4]}",
                block=i // 4,
                role=ROLES[i % 4],
                count=count,
                cost=costs[i],
                zeros=zeros,
            )
            for i, count in enumerate(counts)
        ]
    )


def toy_space(
    *counts: int,
    target: float = 0.5,
    step: int = 10,
    reach: int = 4,
    genes: tuple[tuple[int, ...], ...] | None = None,
    lower: np.ndarray | float = 0.0,
    upper: np.ndarray | float = 1.0,
    cost: int | Sequence[int] = 1,
    pattern: str | None = None,
    options: Mapping[str, float] | None = None,
    share: float | None = None,
    zeros: int = 0,
    curves: Sequence[PriceCurve] | None = None,
) -> SearchSpace:
    """Return a space over `toy_layout`, by default six units of 100, each a gene."""
    layout = toy_layout(*(counts or (100,) * 6), cost=cost, zeros=zeros)
    common: dict[str, Any] = {
        "layout": layout,
        "budget": Budget(target),
        "bounds": Bounds.of(layout, lower, upper),
        "genes": genes or tuple((i,) for i in range(len(layout))),
        "reach": reach,
    }
    prices = Prices(layout, "time", curves) if curves else None
    if pattern:
        return CountLevels(**common, choices=list_pattern_counts(layout, pattern))
    if options:
        return PatternLevels(**common, prices=option_prices(layout, options))
    if share:
        return ShareLevels(**common, share=share, prices=prices)
    if prices is None and layout.divisible:
        return EvenLevels(**common, step=step)
    return StepLevels(**common, step=step, prices=prices)


def build_uneven_spaces() -> dict[str, SearchSpace]:
    """Return spaces whose genes have unequal steps, by the kind of items removed."""
    linears = (144, 48, 144, 384) * 4
    return {
        "2:4": toy_space(*linears, pattern="2:4", target=0.25, reach=1),
        "*:8": toy_space(*linears, pattern="*:8", target=0.4, reach=8, zeros=5),
        "options": toy_space(*linears, options=SAVINGS, target=0.3, reach=2),
        "width": toy_space(*(3, 48) * 6, cost=(96, 9) * 6, target=0.3, step=72, reach=5),
        "sublayers": toy_space(*(1,) * 20, cost=(30, 79) * 10, target=0.3),
        "blocks": toy_space(*(1,) * 16, cost=100, target=0.3),
        "prices": toy_space(
            *(3, 48) * 6, cost=(96, 9) * 6, target=0.3, step=36, reach=5, curves=toy_curves() * 6
        ),
    }


def toy_curves() -> tuple[PriceCurve, PriceCurve]:
    """Return the savings of three heads, and of 48 channels that are computed 16 at a time."""
    tiles = PriceCurve((0, 15, 16, 31, 32, 47, 48), (0.0, 0.0, 5.0, 5.0, 10.0, 10.0, 15.0))
    return PriceCurve((0, 1, 2, 3), (0.0, 9.0, 18.0, 27.0)), tiles


def toy_parametric(
    *parameters: Parameter, of_levels: SearchSpace | None = None, limit: float = math.inf
) -> ParametricSpace:
    """Return a space of the settings of a toy allocator, by default over six units.

    Its settings are ``tilt`` (how sparsity rises over the units), ``knots`` (offsets of the first
    units), ``m`` (a factor of all of them) and ``shape`` (``line``, ``bend``, ``step``).

    Args:
        parameters: The parameters; by default some of each kind.
        of_levels: The space of levels; by default `toy_space`.
        limit: Greatest ``tilt`` that the allocator accepts.
    """
    levels = of_levels or toy_space(reach=8)

    def allocate(settings: Mapping[str, Any]) -> SparsityProfile:
        tilt = settings.get("tilt", 0.0)
        if tilt > limit:
            raise ConfigError(f"tilt must be at most {limit}, not {tilt}")
        wanted = np.linspace(-tilt, tilt, len(levels.layout))
        knots = settings.get("knots", ())
        wanted[: len(knots)] += knots
        shapes = {"line": wanted, "bend": np.abs(wanted), "step": np.sign(wanted)}
        offsets = 0.3 * settings.get("m", 1.0) * shapes[settings.get("shape", "line")]
        sparsities = levels.budget.target + offsets
        return levels.budget.project(levels.layout, sparsities, levels.bounds)

    some = (
        stepped("tilt", -1.0, 1.0, 0.25),
        Parameter("knots.0", (-0.5, 0.0, 0.2, 1.0)),
        stepped("knots.1", -1, 1, 1),
        spaced("m", 0.25, 1.0, 3, log=True),
        Parameter("shape", ("line", "bend", "step")),
    )
    return ParametricSpace(
        parameters=parameters or some,
        allocate=allocate,
        of_levels=levels,
        defaults={"tilt": 0.0, "knots": (0.0, 0.0), "m": 1.0, "shape": "line"},
        method="toy",
    )


def build_parametric_spaces() -> dict[str, ParametricSpace]:
    """Return spaces of parameters, by their special property."""
    return {
        "parameters": toy_parametric(),
        "one parameter": toy_parametric(stepped("tilt", -0.5, 0.5, 0.015625)),
        "names": toy_parametric(
            Parameter("shape", ("line", "bend", "step")),
            spaced("tilt", 0.01, 1.0, 33, log=True),
            spaced("m", 0.1, 1.0, 10),
        ),
        "refusals": toy_parametric(
            stepped("tilt", -1.0, 1.0, 0.0625), stepped("knots.0", -1.0, 1.0, 0.125), limit=0.5
        ),
    }


class MemoryStore:
    """A store of measurements in a list.

    Args:
        measurements: Measurements recorded before.
    """

    def __init__(self, measurements: Sequence[Measurement] = ()) -> None:
        self.measurements = list(measurements)

    def load(self, after: int = 0) -> list[Measurement]:
        """Return the recorded measurements, oldest first, without the first ``after``."""
        return self.measurements[after:]

    def add(self, measurement: Measurement) -> None:
        """Record one measurement."""
        self.measurements.append(measurement)


@dataclass
class SeparableProblem:
    """An objective that is a sum over units: ``Σ w_u · exp(3 · sparsity_u)``.

    With options, the saving of a unit replaces its sparsity.

    Args:
        space: Space of the optimum: levels, or parameters.
        weights: Weight of each unit in the sum, ``(n_units,)``; by default 1, 2, 3, ….
        noise: Deviation of a part of a score, equal for equal profile, subset and row.
        fails: Predicate of the profiles whose score is not finite.
    """

    space: Space
    weights: Sequence[float] | None = None
    noise: float = 0.0
    fails: Callable[[SparsityProfile], bool] = lambda _: False
    calls: list[tuple[SparsityProfile, Fidelity]] = field(default_factory=list)

    def __call__(
        self, profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        """Return the score of a profile, and record the call in `calls`.

        The known score must equal the computed one on the first rows.
        """
        self.calls.append((profile, fidelity))
        found = self._score(profile, fidelity)
        assert known is None or found.parts[: len(known.parts)] == known.parts
        return found

    def exact(self, profile: SparsityProfile) -> float:
        """Return the score of a profile without noise."""
        return float(self._unit_scores(self.space.of_levels.saved(profile)).sum())

    def optimum(self) -> tuple[Candidate, float]:
        """Return the best candidate of the space and its score.

        In a space of levels, dynamic programming finds it: the score of a gene depends on its own
        level only, and legality on the total weights and on the least saving that one level less
        loses, so the best candidate is the cheapest path over these two. In a space of parameters
        all candidates are tried.
        """
        if self.space.parameters:
            return self._best_of_all()
        best: dict[tuple[int, int], tuple[float, Candidate]] = {(0, sys.maxsize): (0.0, ())}
        for gene in range(self.space.n_genes):
            extended: dict[tuple[int, int], tuple[float, Candidate]] = {}
            for level, (score, removed, back) in self._gene_levels(gene).items():
                for (total, least), (so_far, path) in best.items():
                    state = total + removed, min(least, back)
                    option = (so_far + score, (*path, level))
                    if option < extended.get(state, (math.inf, ())):
                        extended[state] = option
            best = extended
        score, candidate = min(option for option in best.values() if option[1] in self.space)
        return candidate, score

    def _best_of_all(self) -> tuple[Candidate, float]:
        found: list[tuple[float, Candidate]] = []
        for candidate in itertools.product(*map(self.space.limits.of, range(self.space.n_genes))):
            with contextlib.suppress(RefusedSettingError):
                found.append((self.exact(self.space.profile(candidate)), candidate))
        score, candidate = min(found)
        return candidate, score

    def _gene_levels(self, gene: int) -> dict[int, tuple[float, int, int]]:
        """Return the score, the weights, and the weights less at the level below, by level."""
        space = self.space.of_levels
        units = list(space.genes[gene])
        found: dict[int, tuple[float, int, int]] = {}
        back = sys.maxsize
        for level in space.limits.of(gene):
            saved = np.zeros(len(space.layout))
            saved[units] = space.gene_saved(gene, level)
            weights = int(saved.sum())
            if found:
                back = weights - found[level - 1][1]
            found[level] = (float(self._unit_scores(saved)[units].sum()), weights, back)
        return found

    def _unit_scores(self, saved: np.ndarray) -> np.ndarray:
        """Return the score of each unit from the weights that it loses or saves."""
        weights, layout = self.weights or range(1, len(saved) + 1), self.space.layout
        scores = np.array(weights) * np.exp(3 * (saved / (layout.counts * layout.costs)))
        return np.asarray(scores)

    def _score(self, profile: SparsityProfile, fidelity: Fidelity) -> Score:
        if self.fails(profile):
            return Score(math.nan, (math.nan,))
        rng = create_generator(fidelity.subset, "toy", profile.digest)
        noise = self.noise * rng.normal(size=max(1, fidelity.tokens // ROW))
        parts = self.exact(profile) + noise
        return Score(float(parts.mean()), tuple(parts.tolist()))


def toy_history(searcher: Searcher, problem: SeparableProblem, rounds: int = 2) -> History:
    """Return the history of a study of a toy problem with a searcher in some rounds."""
    study = Study(
        space=problem.space,
        searcher=searcher,
        objective=problem,
        ladder=TOY_LADDER,
        store=MemoryStore(),
    )
    return study.run(Limits(rounds=rounds))
