"""Realising a profile: pruning a model block by block, each seeing the pruned ones before it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.patterns import with_pattern
from sparsity_search.utils.random import derive_seed


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
        What the pruner had to say of single units.

    Raises:
        ConfigError: The pruner cannot have the profile's patterns.
        ProfileError: The zeros of the result are not those of the profile.
    """
    notes = []
    pruners = {pattern: with_pattern(pruner, pattern) for pattern in {"", *profile.patterns}}
    pruner.merge(subject, profile)
    gradient = pruner.needs_gradient
    for visit in walk(subject, tokens, pruner.requires, rewritten=True, gradient=gradient):
        for unit in visit.units:
            view = subject.views[unit.name]
            count, pattern = profile.states[subject.layout.position(unit.name)]
            variants = pruners[pattern].prune(
                view.read(),
                visit.evidence[unit.name],
                [count],
                seed=derive_seed(seed, "ties", unit.name),
            )
            view.write(variants.at(view.read(), count))
            notes += [f"{unit.name}: {note}" for note in variants.notes]
        notes += visit.notes
        on_block(visit.block)
    subject.verify(profile)
    return notes
