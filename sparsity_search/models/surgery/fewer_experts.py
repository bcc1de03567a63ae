"""Models from which whole experts were removed, in the form that loads."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.expert_count import configure_count
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.whole_experts import ExpertsView
from sparsity_search.models.surgery.rebuild import rebuild
from sparsity_search.profiles.profile import SparsityProfile


def check_experts(subject: PrunableModel, profile: SparsityProfile) -> None:
    """Check, before any work, that experts can be removed as a profile says.

    Raises:
        ModelError: Too few would remain in a mixture, or different numbers in several, for which
            the configuration has no place.
    """
    removed = {
        unit.name: count for unit, count in zip(profile.layout, profile.removed, strict=True)
    }
    kept = []
    for name, view in {**subject.excluded, **subject.views}.items():
        if isinstance(view, ExpertsView):
            view.check(removed.get(name, 0))
            shape = view.structures
            kept.append(shape.count - shape.groups * removed.get(name, 0))
    _check_equal(subject, kept)


def resize_experts(subject: PrunableModel) -> PreTrainedModel:
    """Return the model; if experts were removed, a new one with their number in its configuration.

    Raises:
        ModelError: The mixtures keep different numbers of experts.
    """
    model: PreTrainedModel = subject.model
    every = [*subject.views.values(), *subject.excluded.values()]
    views = [view for view in every if isinstance(view, ExpertsView)]
    kept = [len(view.kept) for view in views]
    _check_equal(subject, kept)
    if not views or kept[0] == views[0].structures.count:
        return model
    config = configure_count(model, views[0].structures.count, kept[0])
    return rebuild(model, config, model.state_dict())


def _check_equal(subject: PrunableModel, kept: Iterable[int]) -> None:
    counts = sorted(set(kept))
    if len(counts) > 1:
        raise ModelError(
            f"blocks keep between {counts[0]} and {counts[-1]} experts, but the configuration of "
            f"{type(subject.model).__name__} has one number for all: remove equally many of each"
        )
