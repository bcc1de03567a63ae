"""What the stages of a search start from, and the space that its first one lies in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.runs import directory

#: Key of the fingerprint of a search whose first space lies around its start.
AROUND = "around"


def kept_starts(run_dir: Path, layout: Layout) -> list[dict[str, SparsityProfile]]:
    """Return the profiles that each stage begun so far starts from, by name."""
    file = run_dir / directory.STARTS
    return [
        {name: SparsityProfile.from_json(layout, start) for name, start in each.items()}
        for each in (directory.read_json(file) if file.exists() else [])
    ]


def first_space(
    space: SearchSpace, fingerprint: Mapping[str, Any], starts: Mapping[str, SparsityProfile]
) -> SearchSpace:
    """Return the space of the first stage.

    If the search says so, the first of its starts has level 0, and does not lie between levels,
    which for a small unit are far apart.

    Args:
        space: As declared, around the uniform profile.
        fingerprint: Of the search.
        starts: Profiles within the space's budget and bounds, by name.
    """
    if AROUND not in fingerprint:
        return space
    start = next(iter(starts.values()))
    return space if start == space.base else space.around(start)
