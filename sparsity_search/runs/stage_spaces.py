"""The spaces that the stages of a search lie in, which follow from what each starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import SearchSpace

#: Key of the fingerprint of a search whose first space lies around its start.
AROUND = "around"
#: Name of the profile that a stage found, and that the next one starts from.
SEARCHED = "searched"


def build_stage_spaces(
    space: SearchSpace,
    fingerprint: Mapping[str, Any],
    starts: Sequence[Mapping[str, SparsityProfile]],
) -> list[SearchSpace]:
    """Return the space of each stage that has begun; of the first one, if none has.

    The first space lies around the first of its starts if the fingerprint says so: the start has
    level 0 then, and does not lie between levels, which for a small unit are far apart. Each
    later one lies around what the stage before found, with half its step.

    Args:
        space: As declared, around the uniform profile.
        fingerprint: Of the search.
        starts: Profiles that each stage starts from, by name; within the budget and bounds.
    """
    if not starts:
        return [space]
    if AROUND in fingerprint and (start := next(iter(starts[0].values()))) != space.base:
        space = space.around(start)
    spaces = [space]
    for later in starts[1:]:
        spaces.append(spaces[-1].refined(later[SEARCHED]))
    return spaces
