"""Offsets by role: some kinds of units are made sparser than others, equally over depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsity_search.allocators.bases.offsets import Offsets, as_offsets, role_offsets
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import converted_field


@dataclass(frozen=True, kw_only=True)
class ByRoleAllocator(Allocator):
    """The target plus an offset for each role; one constant then makes it meet the budget.

    Neither text nor weights decide: the profile is in the setting. So it is made for searches
    over few parameters (space ``role_ratios``), and to state ratios by hand. What all offsets
    have in common changes nothing, and without any the profile is the uniform one.

    Args:
        offsets: By role, what is added to its sparsity; 0 for roles that are not named.
    """

    needs_text: ClassVar[bool] = False

    offsets: Offsets = converted_field(as_offsets, ())

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the profile; neither ``tokens`` nor weights are read.

        Raises:
            UnknownNameError: No unit has a role that is named.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
        del tokens
        wanted = budget.target + role_offsets(subject.layout, self.offsets)
        return budget.project(subject.layout, wanted, bounds)
