"""Realising a profile: pruning a model in forward order, each layer after the ones before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsity_search.errors import NumericalError
from sparsity_search.evidence.masks import cast_nonzero
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Refresh
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.patterns import with_pattern
from sparsity_search.pruning.walk import visit_units, walk_for


def prune_sequentially(
    subject: PrunableModel,
    profile: SparsityProfile,
    pruner: Pruner,
    tokens: Tensor,
    *,
    seed: int = 0,
    refresh: Refresh = "layer",
    on_block: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Prune the model in place to exactly ``profile``.

    Pruned weights are rounded to the number type in which they are saved, so that later blocks,
    and scores of the result, see what is shipped.

    Args:
        subject: The model; wrap the call in `PrunableModel.preserved` to get it back.
        profile: Items to remove from each unit.
        pruner: How; where the profile says a pattern, with that in place of its own.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        seed: Breaks ties among scores.
        refresh: What is pruned at once, before statistics are gathered anew, see
            `models.running.walk.walk`.
        on_block: Called with the index of each block when it is done.

    Returns:
        The pruner's remarks on single units.

    Raises:
        ConfigError: The pruner cannot have the profile's patterns.
        ProfileError: The zeros of the result are not those of the profile.
        NumericalError: A weight is too large for the number type in which it is saved.
    """
    notes = []
    pruners = {pattern: with_pattern(pruner, pattern) for pattern in {"", *profile.patterns}}
    pruner.merge(subject, profile)
    for visit in walk_for(pruner, subject, tokens, rewritten=True, refresh=refresh):
        for reached in visit_units(subject, visit):
            name = reached.unit.name
            count, pattern = profile.states[subject.layout.position(name)]
            variants = reached.prune(pruners[pattern], [count], seed)
            weight = variants.at(reached.weight, count)
            reached.view.write(_round(weight, subject.saved_as or weight.dtype))
            notes += [f"{name}: {note}" for note in variants.notes]
        notes += visit.notes
        if visit.last:
            on_block(visit.block)
    subject.verify(profile)
    return notes


def _round(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight rounded to another number type, with the same zeros, in its own type."""
    if dtype == weight.dtype:
        return weight
    rounded = cast_nonzero(weight, dtype)
    if rounded.isinf().any():
        raise NumericalError(f"pruned weights leave the range of {dtype}, in which they are saved")
    return rounded.to(weight.dtype)
