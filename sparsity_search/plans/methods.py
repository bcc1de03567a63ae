"""What methods cost and have gained: the data of ``methods.yaml`` and ``gains.json``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import Field

from sparsity_search.config.schema import RunConfig, Section
from sparsity_search.utils.reading import parse_json, parse_yaml

#: The costs of methods, and gains of searches.
METHODS = "methods.yaml"
#: Gains of allocators and of pruners, from the tables of the benchmarks.
GAINS = "gains.json"
#: Cost of a backward pass, in forward passes: gradients of inputs and of weights.
BACKWARD = 2.0
#: Passes of the calibration text in a search besides its rounds: the walk of the supernet,
#: and three profiles rebuilt at the end, two passes each.
SEARCH_PASSES = 8


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
class PrunerFigure:
    """What a pruner was measured at, with the uniform profile.

    Attributes:
        pruner: Its name.
        sparsity: The global sparsity.
        ratio: Perplexity as a multiple of that with SparseGPT.
        seconds: CPU time of statistics and pruning in the benchmark.
        source: Where it was measured.
    """

    pruner: str
    sparsity: float
    ratio: float
    seconds: float
    source: str


@cache
def load_methods() -> tuple[Method, ...]:
    """Return the methods of ``methods.yaml``, with the gains of ``gains.json``."""
    gains: dict[str, list[MeasuredGain]] = {}
    for row in parse_json(_read(GAINS))["allocators"]:
        fields = {key: row[key] for key in MeasuredGain.model_fields}
        gains.setdefault(row["allocator"], []).append(MeasuredGain(**fields))
    entries = parse_yaml(_read(METHODS))["methods"]
    return tuple(
        Method.model_validate({"measured": gains.get(entry["name"], []), **entry})
        for entry in entries
    )


def list_pruners(sparsity: float) -> list[PrunerFigure]:
    """Return the pruners that are worth their time, the quickest first.

    Each is better than all that took less time, at the measured sparsity nearest to the given
    one. A pruner that is not measured there is left out.
    """
    rows = [PrunerFigure(**row) for row in parse_json(_read(GAINS))["pruners"]]
    nearest = min((row.sparsity for row in rows), key=lambda known: abs(known - sparsity))
    found: list[PrunerFigure] = []
    for row in sorted(rows, key=lambda row: row.seconds):
        if row.sparsity == nearest and (not found or row.ratio < found[-1].ratio):
            found.append(row)
    return found


def _read(name: str) -> str:
    return files("sparsity_search.plans").joinpath(name).read_text(encoding="utf-8")
