"""Level files of EvoPress."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, ProfileError
from sparsity_search.formats.bases.layers import (
    check_single_weights,
    join_rows,
    match_values,
    require_layout,
    round_to_counts,
    sum_rows,
)
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.budget import Bounds, water_fill
from sparsity_search.profiles.layout import Layout

#: Levels that end at 0 or 1 but for the rounding of floating-point numbers are legal.
_EXACT = 1e-9
_LINE = re.compile(r"(\S+)\s*:\s*([+-]?\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class EvopressFormat(Format):
    """A level for each layer, as EvoPress's search writes; a level moves ``step`` weights.

    A layer of ``N`` weights at level ``l`` has sparsity ``sparsity + l · step / N`` (EvoPress,
    arXiv 2410.14649, section 3, and its released code). The levels of a file sum to zero, so that
    the whole model has ``sparsity``. Neither number is in the file. The rows of a fused projection
    are one layer there.

    Args:
        sparsity: Of level 0; it must be given.
        step: Weights that a level moves; it must be given. The released scripts use 1,000,000.
        max_level: Most levels up or down that are written: EvoPress makes 8.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    sparsity: float | None = None
    step: int | None = None
    max_level: int = 8

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity must lie strictly between 0 and 1, not {self.sparsity}")
        if self.step is not None and (type(self.step) is not int or self.step < 1):
            raise ConfigError(f"step must be an integer from 1, in weights, not {self.step}")
        if type(self.max_level) is not int or self.max_level < 1:
            raise ConfigError(f"max_level must be an integer from 1, not {self.max_level}")

    def read(self, text: str, layout: Layout | None = None) -> ProfileDocument:
        """Return the counts that the levels mean."""
        levels: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.strip())
            if not match:
                raise ProfileError(f"line {number}: 'layer: level' is needed, not {line[:60]!r}")
            if match[1] in levels:
                raise ProfileError(f"line {number}: {match[1]} has a level already")
            levels[match[1]] = int(match[2])
        if sum(levels.values()) != 0:
            raise ProfileError(
                f"the levels sum to {sum(levels.values())}, and EvoPress's to 0: is it whole?"
            )
        (base, step), units = self._scale(), require_layout(layout)
        found = match_values(units, levels)
        layers, places = join_rows(units)
        sparsities = base + found * step / layers.counts[places]
        for unit, level, sparsity in zip(units, found, sparsities, strict=True):
            if not -_EXACT <= sparsity <= 1 + _EXACT:
                raise ProfileError(
                    f"{unit.name}: level {level:.0f} of {step} weights on {base} of "
                    f"{unit.count} is sparsity {sparsity:.4g}; are sparsity and step right?"
                )
        return ProfileDocument(round_to_counts(units, sparsities))

    def write(self, document: ProfileDocument) -> str:
        """Return the nearest levels that sum to zero.

        Raises:
            InfeasibleBudgetError: The profile is further than half a level from the sparsity of
                level 0, or levels cannot sum to zero.
        """
        check_single_weights(document.profile, "EvoPress's levels")
        profile, (base, step) = sum_rows(document.profile), self._scale()
        counts = profile.layout.counts
        wanted = (np.array(profile.removed) - base * counts) / step
        most = np.full(len(counts), self.max_level)
        bounds = Bounds(
            lower=-np.minimum(np.floor(base * counts / step + _EXACT), most).astype(np.int64),
            upper=np.minimum(np.floor((1 - base) * counts / step + _EXACT), most).astype(np.int64),
        )
        if round(float(wanted.sum())) != 0:
            raise InfeasibleBudgetError(
                f"EvoPress's levels sum to zero, and the profile's sparsity is not {base:.6g}: "
                f"give --set evopress.sparsity={profile.sparsity!r}"
            )
        ones = np.ones(len(counts), dtype=np.int64)
        levels = water_fill(wanted, ones, bounds, ones, 0)
        lines = (f"{u.name}: {level}\n" for u, level in zip(profile.layout, levels, strict=True))
        return "".join(lines)

    def _scale(self) -> tuple[float, int]:
        """Return the scale of levels: the sparsity of level 0, and the weights of one level."""
        if self.sparsity is None:
            raise _build_unknown_error("the sparsity of level 0", "sparsity=0.7")
        if self.step is None:
            raise _build_unknown_error("how many weights a level moves", "step=1000000")
        return self.sparsity, self.step


def _build_unknown_error(what: str, setting: str) -> ConfigError:
    return ConfigError(f"a level file does not say {what}: give it, e.g. --set evopress.{setting}")
