"""What methods cost, and what they have gained: the data of ``methods.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import Field

from sparsity_search.config.schema import RunConfig, Section
from sparsity_search.utils.reading import parse_yaml

#: The costs and gains of methods: the one place where they are kept.
METHODS = "methods.yaml"
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


@cache
def load_methods() -> tuple[Method, ...]:
    """Return the methods of ``methods.yaml``."""
    text = files("sparsity_search.plans").joinpath(METHODS).read_text(encoding="utf-8")
    return tuple(Method.model_validate(entry) for entry in parse_yaml(text)["methods"])
