"""Transfer of profiles to another target of the same model, or to another model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile


def retarget(
    profile: SparsityProfile, budget: Budget, bounds: Bounds | None = None
) -> SparsityProfile:
    """Return the profile shifted to another target: its shape stays, its mean changes.

    Args:
        profile: The profile.
        budget: The new target, met exactly.
        bounds: Limits in items; by default none.

    Raises:
        InfeasibleBudgetError: No profile within the bounds meets the budget.
    """
    return budget.project(profile.layout, profile.sparsities, bounds)


def transfer(
    profile: SparsityProfile, layout: Layout, budget: Budget, bounds: Bounds | None = None
) -> SparsityProfile:
    """Return the profile transferred to another model, by role and relative depth.

    Args:
        profile: The profile of the source model.
        layout: The target model's units, of the same kind.
        budget: The target, met exactly.
        bounds: Limits in items of ``layout``; by default none.

    Raises:
        InfeasibleBudgetError: No profile within the bounds meets the budget.
    """
    return budget.project(layout, interpolate_sparsities(profile, layout), bounds)


def interpolate_sparsities(profile: SparsityProfile, layout: Layout) -> np.ndarray:
    """Return the sparsity that each unit of ``layout`` takes over, ``(n_units,)`` float64.

    If both layouts have the same units, their sparsities are equal. Otherwise, the source's
    sparsities of the unit's role are interpolated linearly between its blocks at the unit's
    relative depth; if the source has no such role, those of all roles are. Several units of a role
    in one block count as one, weighted by parameters.
    """
    if have_same_units(profile.layout, layout):
        return profile.sparsities
    source_depths, target_depths = (
        compute_relative_depths(profile.layout),
        compute_relative_depths(layout),
    )
    source_roles = np.array([unit.role for unit in profile.layout])
    target_roles = np.array([unit.role for unit in layout])
    sparsities = np.empty(len(layout))
    for role in dict.fromkeys(target_roles.tolist()):
        members = source_roles == role
        knots, values = _average_by_depth(
            profile, source_depths, members if members.any() else np.ones_like(members)
        )
        units = target_roles == role
        sparsities[units] = np.interp(target_depths[units], knots, values)
    return sparsities


def find_unmatched_roles(profile: SparsityProfile, layout: Layout) -> list[str]:
    """Return the roles of ``layout`` without a match in the profile, which follow its blocks."""
    matched = {unit.role for unit in profile.layout}
    return list(dict.fromkeys(unit.role for unit in layout if unit.role not in matched))


def have_same_units(one: Layout, other: Layout) -> bool:
    """Return whether two layouts are equal except for the zeros of the dense model."""
    return [replace(unit, zeros=0) for unit in one] == [replace(unit, zeros=0) for unit in other]


def compute_relative_depths(layout: Layout) -> np.ndarray:
    """Return the depth of each unit, ``(n_units,)``: 0 in the first block, 1 in the last.

    If there is only one block, its depth is 0.5.
    """
    blocks = np.array([unit.block for unit in layout], dtype=np.float64)
    return blocks / blocks.max() if blocks.max() > 0 else np.full(len(layout), 0.5)


def _average_by_depth(
    profile: SparsityProfile, depths: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the depths of some units, and their mean sparsity there, weighted by parameters."""
    layout = profile.layout
    knots, position = np.unique(depths[members], return_inverse=True)
    removed = (np.array(profile.removed) * layout.costs)[members]
    sizes = (layout.counts * layout.costs)[members]
    return knots, np.bincount(position, removed) / np.bincount(position, sizes)
