"""Which method fits the time there is: measured gains, and costs timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import inf

import torch
from pydantic import Field

from sparsity_search.config.schema import RunConfig, Section
from sparsity_search.engine.estimate import draw_tokens
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_pruner, choose_units
from sparsity_search.engine.session import Session, open_session
from sparsity_search.errors import ConfigError
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.profiles.budget import Budget
from sparsity_search.utils.reading import parse_yaml

#: The costs and gains of methods: the one place where they are kept.
METHODS = "methods.yaml"
#: Cost of a backward pass, in forward passes: gradients of inputs and of weights.
BACKWARD = 2.0
#: Passes of the calibration text in a search besides its rounds: the walk of the supernet,
#: and three profiles rebuilt at the end, two passes each.
SEARCH_PASSES = 8
#: Timed passes; the quickest one counts, since other work on the machine only slows them.
_REPEATS = 3


class MeasuredGain(Section):
    """A measured gain.

    Attributes:
        pruner: The local pruner.
        sparsity: The global sparsity.
        ratio: Perplexity as a multiple of that of uniform.
        source: Where it was measured.
    """

    pruner: str
    sparsity: float
    ratio: float
    source: str


class Method(Section):
    """Cost and gain of a method; see the head of ``methods.yaml``."""

    name: str
    allocator: str | None = None
    rounds: int | None = None
    tokens: int | None = None
    forward: float = Field(default=0, ge=0)
    backward: float = Field(default=0, ge=0)
    seconds_per_million: float = Field(default=0, ge=0)
    measured: tuple[MeasuredGain, ...] = ()

    def find_gain(self, pruner: str, sparsity: float) -> MeasuredGain | None:
        """Return the gain measured nearest to a case: with its pruner if there is one."""
        own = [gain for gain in self.measured if gain.pruner == pruner]
        near = own or self.measured
        return min(near, key=lambda gain: abs(gain.sparsity - sparsity), default=None)

    def seconds(self, machine: MachineSpeed, config: RunConfig) -> float:
        """Return the seconds that the method will take.

        Args:
            machine: How fast the model runs.
            config: The calibration text, and the ladder of a search.
        """
        data = config.data
        calibration = data.calibration_sequences * data.calibration_length
        tokens = (self.tokens or calibration) * (self.forward + BACKWARD * self.backward)
        if self.rounds is not None:
            tokens += self.rounds * config.ladder.round_tokens + SEARCH_PASSES * calibration
        weights = self.seconds_per_million * machine.weights / 1e6
        return tokens * machine.seconds_per_token + weights


@dataclass(frozen=True)
class MachineSpeed:
    """How fast a model runs here: seconds for a token, and the number of prunable weights."""

    seconds_per_token: float
    weights: int


@dataclass(frozen=True)
class TimedMethod:
    """A method with its time here and the gain nearest to the case; None if not measured."""

    method: Method
    seconds: float
    gain: MeasuredGain | None


@dataclass(frozen=True)
class Recommendation:
    """The outcome of `recommend`.

    Attributes:
        methods: All of them, the quickest first.
        chosen: The best measured one that fits the time.
        machine: The measured speed.
        why: In one sentence.
    """

    methods: Sequence[TimedMethod]
    chosen: TimedMethod
    machine: MachineSpeed
    why: str


def recommend(config: RunConfig, minutes: float, monitor: Monitor | None = None) -> Recommendation:
    """Time the model, and choose the method of the best measured gain that fits the time.

    No text is needed: random tokens take as long as any.

    Args:
        config: Model, pruner and sparsity.
        minutes: Time for the method; pruning comes after it.
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
    return choose(load_methods(), machine, config, budget.target, minutes)


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


def time_model(session: Session, length: int) -> MachineSpeed:
    """Return how fast a model runs on one sequence of random tokens."""
    model = session.loaded.model
    tokens, spent = draw_tokens(session, length), []
    with torch.inference_mode():
        compute_last_hidden(model, tokens)  # warms up
        for _ in range(_REPEATS):
            started = time.monotonic()
            compute_last_hidden(model, tokens).sum().item()  # waits for the device
            spent.append(time.monotonic() - started)
    return MachineSpeed(min(spent) / tokens.numel(), session.subject.layout.n_weights)


@cache
def load_methods() -> tuple[Method, ...]:
    """Return the methods of ``methods.yaml``."""
    text = files("sparsity_search.workflow").joinpath(METHODS).read_text(encoding="utf-8")
    return tuple(Method.model_validate(entry) for entry in parse_yaml(text)["methods"])


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
