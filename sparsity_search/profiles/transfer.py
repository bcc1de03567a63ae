"""Profiles that move: to another target of the same model, or to another model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile


def retarget(
    profile: SparsityProfile, budget: Budget, bounds: Bounds | None = None
) -> SparsityProfile:
    """Return the profile shifted to another target: its shape stays, its mean moves.

    Args:
        profile: What is shifted.
        budget: The new target, met exactly.
        bounds: Limits in items; by default none.

    Raises:
        InfeasibleBudgetError: No profile within the bounds meets the budget.
    """
    return budget.project(profile.layout, profile.sparsities, bounds)


def transfer(
    profile: SparsityProfile, layout: Layout, budget: Budget, bounds: Bounds | None = None
) -> SparsityProfile:
    """Return the profile that another model gets from this one, by role and relative depth.

    Args:
        profile: Of the model that it was found for.
        layout: The other model's units, of the same kind.
        budget: The target, met exactly.
        bounds: Limits in items of ``layout``; by default none.

    Raises:
        InfeasibleBudgetError: No profile within the bounds meets the budget.
    """
    return budget.project(layout, carried(profile, layout), bounds)


def carried(profile: SparsityProfile, layout: Layout) -> np.ndarray:
    """Return the sparsity that each unit of ``layout`` takes over, ``(n_units,)`` float64.

    Where the units are the same ones, it is theirs. Otherwise the source's sparsities of the
    unit's role, or of all roles if it has no such role, are interpolated linearly between its
    blocks at the unit's relative depth. Several units of a role in one block count as one,
    weighted by parameters.
    """
    if same_units(profile.layout, layout):
        return profile.sparsities
    theirs, depths = relative_depths(profile.layout), relative_depths(layout)
    known = np.array([unit.role for unit in profile.layout])
    wanted = np.array([unit.role for unit in layout])
    found = np.empty(len(layout))
    for role in dict.fromkeys(wanted.tolist()):
        members = known == role
        knots, values = _curve(
            profile, theirs, members if members.any() else np.ones_like(members)
        )
        found[wanted == role] = np.interp(depths[wanted == role], knots, values)
    return found


def unmatched_roles(profile: SparsityProfile, layout: Layout) -> list[str]:
    """Return the roles of ``layout`` that the profile does not have: they follow its blocks."""
    known = {unit.role for unit in profile.layout}
    return list(dict.fromkeys(unit.role for unit in layout if unit.role not in known))


def same_units(one: Layout, other: Layout) -> bool:
    """Return whether two layouts are of one model: equal but for the zeros there already."""
    return [replace(unit, zeros=0) for unit in one] == [replace(unit, zeros=0) for unit in other]


def relative_depths(layout: Layout) -> np.ndarray:
    """Return the depth of each unit, ``(n_units,)``: 0 in the first block, 1 in the last.

    The only block of a model lies in the middle.
    """
    blocks = np.array([unit.block for unit in layout], dtype=np.float64)
    return blocks / blocks.max() if blocks.max() > 0 else np.full(len(layout), 0.5)


def _curve(
    profile: SparsityProfile, depths: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the depths of some units, and their sparsity there, weighted by parameters."""
    layout = profile.layout
    knots, position = np.unique(depths[members], return_inverse=True)
    removed = (np.array(profile.removed) * layout.costs)[members]
    sizes = (layout.counts * layout.costs)[members]
    return knots, np.bincount(position, removed) / np.bincount(position, sizes)
