"""Offsets by role: some kinds of units are made sparser than others, equally over depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsity_search.allocators.bases.offsets import Offsets, get_unit_offsets, parse_offsets
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.registry import converted_field


@dataclass(frozen=True, kw_only=True)
class ByRoleAllocator(Allocator):
    """The target plus an offset for each role; one constant then makes it meet the budget.

    Neither text nor weights decide: the profile is in the setting. So it is made for searches
    over few parameters (space ``role_ratios``), and to state ratios by hand. What all offsets
    have in common changes nothing, and without any the profile is the uniform one.

    Args:
        offsets: By role, added to the target; 0 for roles that are not named.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS
    needs_text: ClassVar[bool] = False

    offsets: Offsets = converted_field(parse_offsets, ())

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return the target plus the offset of each unit's role.

        Raises:
            UnknownNameError: No unit has a role that is named.
        """
        return problem.target + get_unit_offsets(problem.layout, self.offsets)
