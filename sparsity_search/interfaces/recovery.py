"""The interface of recoveries, which train what pruning kept; what it removed stays zero."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.interfaces.units import ALL_UNITS, SupportsUnits
from sparsity_search.models.anatomy.prunable import PrunableModel


class Progress(Protocol):
    """What a recovery has finished, so that an interrupted one goes on there."""

    def load(self, part: str) -> Mapping[str, Tensor] | None:
        """Return the tensors of a part by name; None if it is not there."""

    def keep(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a part; they replace those of the same name."""


class NoProgress:
    """Keeps nothing."""

    def load(self, part: str) -> None:
        """Return nothing."""
        del part

    def keep(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep nothing."""
        del part, tensors


@dataclass(frozen=True, eq=False)
class RecoveryProblem:
    """What a recovery works on.

    Attributes:
        subject: The pruned model, whose kept weights are trained in place.
        dense: The dense model; it is not changed.
        tokens: Text to train on, ``(n_sequences, length)`` int64.
        held_out: Text that decides when to stop, ``(n_sequences, length)`` int64.
        seed: Of all random draws.
        seconds_left: Returns the time that is left; infinite without a limit.
        progress: What is finished.
        advance: Function to call after each part of the work.
    """

    subject: PrunableModel
    dense: PrunableModel
    tokens: Tensor
    held_out: Tensor
    seed: int = 0
    seconds_left: Callable[[], float] = lambda: math.inf
    progress: Progress = field(default_factory=NoProgress)
    advance: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Recovered:
    """What a recovery brought.

    Attributes:
        before: Its loss on the held-out text before, in `Recovery.loss`.
        after: The same after.
        notes: Remarks, e.g. on blocks that kept their weights.
    """

    before: float
    after: float
    notes: Sequence[str] = ()


def check_positive(**settings: float) -> None:
    """Check settings by name.

    Raises:
        ConfigError: One is not positive.
    """
    for name, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{name} must be positive, not {value}")


@dataclass(frozen=True, kw_only=True)
class Recovery(SupportsUnits, ABC):
    """Base class of recoveries. Plugins are frozen keyword-only dataclasses that write `train`.

    Rules, which the contract in `sparsity_search.testing.recovery` tests:

    * Zeros of the pruned units stay zero, and no other weight of them becomes zero, in the number
      type in which the checkpoint is saved.
    * The loss on the held-out text does not rise.
    * The dense model is not changed.
    * Equal arguments without a time limit give equal bits.

    Args:
        sequences: Sequences of text to train on.
        held_out: Sequences that decide when to stop.

    Attributes:
        loss: What is minimised, for people.
        offloads: Whether it works on models whose blocks rest in a file.
        experimental: Why users should prefer another one; empty if there is no reason.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS
    loss: ClassVar[str] = "loss"
    offloads: ClassVar[bool] = False
    experimental: ClassVar[str] = ""

    sequences: int = 64
    held_out: int = 8

    def __post_init__(self) -> None:
        check_positive(sequences=self.sequences, held_out=self.held_out)

    def recover(self, problem: RecoveryProblem) -> Recovered:
        """Train the kept weights of a pruned model in place.

        Raises:
            ConfigError: The method is not for this model, or not for units of this kind.
            ProfileError: A zero was lost, which is a fault of the method.
        """
        self.check_units(problem.subject.units)
        before = problem.subject.zeros()
        result = self.train(problem)
        if problem.subject.zeros() != before:
            raise ProfileError("this recovery changed the number of zeros: nothing is saved")
        return result

    @abstractmethod
    def train(self, problem: RecoveryProblem) -> Recovered:
        """Train the kept weights in place, as `recover` says."""

    def count_parts(self, problem: RecoveryProblem) -> int | None:
        """Return how often `RecoveryProblem.advance` will be called; None if it is unknown."""
        del problem
        return None
