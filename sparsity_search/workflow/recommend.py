"""Which method and pruner fit the time: measured gains, and costs timed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.estimate import time_model, time_rebuild
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_pruner, choose_units
from sparsity_search.engine.session import Session, open_session
from sparsity_search.errors import ConfigError
from sparsity_search.plans.methods import (
    MachineSpeed,
    MeasuredGain,
    Method,
    PrunerFigure,
    list_pruners,
    load_methods,
)
from sparsity_search.profiles.budget import Budget
from sparsity_search.registry import PRUNERS


@dataclass(frozen=True)
class TimedMethod:
    """A method with its time here and the gain nearest to the case; None if not measured."""

    method: Method
    seconds: float
    gain: MeasuredGain | None


@dataclass(frozen=True)
class TimedPruner:
    """A pruner with its figure, and its time for the whole model here."""

    figure: PrunerFigure
    seconds: float


@dataclass(frozen=True)
class Recommendation:
    """The outcome of `recommend`.

    Attributes:
        methods: All of them, the quickest first.
        chosen: The best measured one that fits the time.
        machine: The measured speed.
        why: In one sentence.
        pruners: Those that are worth their time, as measured.
    """

    methods: Sequence[TimedMethod]
    chosen: TimedMethod
    machine: MachineSpeed
    why: str
    pruners: Sequence[TimedPruner] = ()

    def choose_pruner(self, minutes: float) -> TimedPruner | None:
        """Return the best pruner that takes no longer than some time; None if all do."""
        fitting = [entry for entry in self.pruners if entry.seconds <= 60 * minutes]
        return min(fitting, key=lambda entry: entry.figure.ratio, default=None)


def recommend(config: RunConfig, minutes: float, monitor: Monitor | None = None) -> Recommendation:
    """Time the model, and choose the method of the best measured gain that fits the time.

    No text is needed: random tokens take as long as any.

    Args:
        config: Model, pruner and sparsity.
        minutes: Time for the method, and for the pruning that comes after it.
        monitor: Watches the job.

    Raises:
        ConfigError: The time is negative, or the pruner removes structures, of which there are
            no measured gains.
        SparsitySearchError: Something else given is not legal.
    """
    monitor = monitor or Monitor()
    if not 0 <= minutes < inf:
        raise ConfigError(f"--minutes must be a number from 0 on, not {minutes}")
    budget = Budget(config.budget.target)
    pruner = build_pruner(config)
    kind = choose_units(config, pruner)
    if kind != "weights":
        raise ConfigError(
            f"there are no measured gains for {kind}: use compare, or --units weights"
        )
    session = open_session(config.model, [], config.study.seed, monitor, units=kind)
    with monitor.step("time the model"):
        machine = time_model(session, config.data.calibration_length)
    found = choose(load_methods(), machine, config, budget.target, minutes)
    with monitor.step("time the pruners"):
        pruners = time_pruners(session, config, budget)
    return replace(found, pruners=pruners)


def time_pruners(session: Session, config: RunConfig, budget: Budget) -> list[TimedPruner]:
    """Return the pruners worth their time, with their times here from samples of one block."""
    profile = budget.uniform(session.subject.layout)
    return [
        TimedPruner(figure, time_rebuild(session, PRUNERS.create(figure.pruner), profile, config))
        for figure in list_pruners(budget.target)
    ]


def choose(
    known: Sequence[Method],
    machine: MachineSpeed,
    config: RunConfig,
    sparsity: float,
    minutes: float,
) -> Recommendation:
    """Return the recommendation for a machine.

    Args:
        known: Methods; one of them with a measured gain takes no time.
        machine: How fast the model runs.
        config: Pruner, calibration text and ladder.
        sparsity: The global sparsity.
        minutes: Time for the method.
    """
    name = config.pruner.name
    found = [
        TimedMethod(m, m.seconds(machine, config), m.find_gain(name, sparsity)) for m in known
    ]
    found.sort(key=lambda entry: entry.seconds)
    fitting = [entry for entry in found if entry.gain and entry.seconds <= 60 * minutes]
    if not fitting:
        raise ConfigError("no method with a measured gain fits this time")
    # gains with another pruner are not comparable: they count where there are none with this one
    own = [entry for entry in fitting if _get_ratio(entry) < 1 and _get_pruner(entry) == name]
    best = min(own or fitting, key=_get_ratio)  # of equal ones the quickest
    return Recommendation(found, best, machine, _explain(best, found, minutes))


def _get_ratio(entry: TimedMethod) -> float:
    assert entry.gain is not None
    return entry.gain.ratio


def _get_pruner(entry: TimedMethod) -> str:
    assert entry.gain is not None
    return entry.gain.pruner


def _explain(best: TimedMethod, found: Sequence[TimedMethod], minutes: float) -> str:
    gain = best.gain
    assert gain is not None
    where = f"{gain.pruner} at {gain.sparsity:.0%}: {gain.source}"
    text = f"{best.method.name} has the best measured gain of what fits {minutes:g} min: "
    text += f"{gain.ratio:.3g} times the perplexity of uniform ({where})"
    same = [e for e in found if e.gain and e.gain.pruner == gain.pruner]
    if better := [e for e in same if _get_ratio(e) < gain.ratio]:
        more = min(better, key=lambda entry: entry.seconds)
        text += f"; {more.method.name} would need {max(1, round(more.seconds / 60))} min"
    return text + "."
