"""Realising a profile: pruning a model block by block, each seeing the pruned ones before it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
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
    on_block: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Prune the model in place to exactly ``profile``.

    Args:
        subject: The model; wrap the call in `PrunableModel.preserved` to get it back.
        profile: Items to remove from each unit.
        pruner: How; where the profile says a pattern, with that in place of its own.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        seed: Breaks ties among scores.
        on_block: Called with the index of each block when it is done.

    Returns:
        The pruner's remarks on single units.

    Raises:
        ConfigError: The pruner cannot have the profile's patterns.
        ProfileError: The zeros of the result are not those of the profile.
    """
    notes = []
    pruners = {pattern: with_pattern(pruner, pattern) for pattern in {"", *profile.patterns}}
    pruner.merge(subject, profile)
    for visit in walk_for(pruner, subject, tokens, rewritten=True):
        for reached in visit_units(subject, visit):
            name = reached.unit.name
            count, pattern = profile.states[subject.layout.position(name)]
            variants = reached.prune(pruners[pattern], [count], seed)
            reached.view.write(variants.at(reached.weight, count))
            notes += [f"{name}: {note}" for note in variants.notes]
        notes += visit.notes
        on_block(visit.block)
    subject.verify(profile)
    return notes
