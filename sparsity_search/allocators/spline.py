"""A smooth curve over depth, through a few knots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

from sparsity_search.allocators.bases.offsets import (
    Offsets,
    check_offsets,
    get_unit_offsets,
    parse_offsets,
)
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.registry import converted_field


@dataclass(frozen=True, kw_only=True)
class SplineAllocator(Allocator):
    """A curve over depth through knots, monotone between them; offsets by role may be added.

    The knots lie evenly from the first block to the last. Between them runs the piecewise cubic
    of Fritsch and Butland (SciPy's ``PchipInterpolator``): it has no extremum except at knots, so
    no block leaves the range of the knots around it. All units of a block share the curve's
    value. The budget's projection then adds one constant, so that what all knots have in common
    changes nothing; equal knots give the uniform profile.

    Neither text nor weights decide: the profile is in the settings. So it is made for searches
    over few parameters (space ``depth_spline``).

    Args:
        knots: Added to the target at each knot, first block first; at least two.
        offsets: By role, added to the curve; 0 for roles that are not named.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS
    needs_text: ClassVar[bool] = False

    knots: tuple[float, ...] = (0.0,) * 5
    offsets: Offsets = converted_field(parse_offsets, ())

    def __post_init__(self) -> None:
        if len(self.knots) < 2:
            raise ConfigError(f"knots must be at least two, not {len(self.knots)}")
        check_offsets("knots", self.knots)

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return the target plus the curve at each unit's block and the offset of its role.

        Raises:
            UnknownNameError: No unit has a role that is named.
        """
        curve = evaluate_curve(self.knots, len(problem.subject.blocks))
        at_blocks = curve[[unit.block for unit in problem.layout]]
        return np.asarray(
            problem.target + at_blocks + get_unit_offsets(problem.layout, self.offsets)
        )


def evaluate_curve(knots: tuple[float, ...], n_blocks: int) -> np.ndarray:
    """Return the curve at each block, ``(n_blocks,)`` float64; one block is at the first knot.

    >>> evaluate_curve((0.0, 0.2, 0.0), 5).round(3).tolist()
    [0.0, 0.15, 0.2, 0.15, 0.0]
    """
    depths = np.linspace(0.0, len(knots) - 1.0, n_blocks)
    return np.asarray(PchipInterpolator(np.arange(len(knots)), np.array(knots))(depths))
