"""Sensitivities that need less text than the pruner does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.sensitivity import Sensitivity


@dataclass(frozen=True, kw_only=True)
class ShortTextSensitivity(Sensitivity):
    """Measures on the beginning of the calibration text.

    Attributes:
        sequences: Sequences of the calibration text that are used, at most.
        length: Tokens of each, at most.
    """

    sequences: int = 4
    length: int = 512

    def __post_init__(self) -> None:
        for name in ("sequences", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def text(self, tokens: Tensor) -> Tensor:
        """Return the part of ``tokens``, ``(n_sequences, length)``, that is used."""
        return tokens[: self.sequences, : self.length]
