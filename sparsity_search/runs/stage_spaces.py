"""The search space of each stage, which follows from the profiles that the stage starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import SearchSpace

#: Key of the fingerprint of a search whose first space lies around its start.
AROUND = "around"
#: Name of a stage's result, from which the next stage starts.
SEARCHED = "searched"


def build_stage_spaces(
    space: SearchSpace,
    fingerprint: Mapping[str, Any],
    starts: Sequence[Mapping[str, SparsityProfile]],
) -> list[SearchSpace]:
    """Return the space of each stage that has begun; of the first one, if none has.

    The first space lies around the first of its starts if the fingerprint says so: the start has
    level 0 then, and does not lie between levels, which for a small unit are far apart. Each
    later space lies around the result of the stage before, with half its step.

    Args:
        space: As declared, around the uniform profile.
        fingerprint: Fingerprint of the search.
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
