from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.allocators.lamp import LAMPAllocator, compute_lamp_scores
from sparsity_search.errors import NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.testing.models import tiny_llama

NOTHING = torch.empty(0, 0)


def allocated(
    subject: PrunableModel, target: float, bounds: Bounds | None = None
) -> SparsityProfile:
    bounds = bounds or Bounds.of(subject.layout)
    return LAMPAllocator().allocate(subject, NOTHING, Budget(target), bounds)


def reference(weight: list[float]) -> list[float]:
    """Return the scores by their formula, one weight after another, in float64."""
    scores, tail = [], 0.0
    for w in sorted(map(abs, weight), reverse=True):
        tail += w * w
        scores.append(w * w / tail if tail else 0.0)
    return scores


WEIGHTS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0]), st.floats(-4, 4, width=32)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60)
@given(weight=WEIGHTS)
def test_scores_are_those_of_the_formula(weight: list[float]) -> None:
    found = compute_lamp_scores(torch.tensor([weight])).tolist()
    np.testing.assert_allclose(sorted(found), sorted(reference(weight)), rtol=1e-6, atol=1e-30)


def test_hand_computed() -> None:
    found = compute_lamp_scores(torch.tensor([[3.0, -1.0], [0.0, 2.0]])).tolist()
    np.testing.assert_allclose(found, [1, 4 / 13, 1 / 14, 0], rtol=1e-6)
    assert compute_lamp_scores(torch.zeros(2, 2)).tolist() == [0.0] * 4


@settings(max_examples=60)
@given(weight=WEIGHTS, factor=st.sampled_from([4.0, 1024.0]))
def test_top_score_is_one_and_others_at_most_half(weight: list[float], factor: float) -> None:
    scores = compute_lamp_scores(torch.tensor([weight]))
    top = scores.sort(descending=True).values
    assert top[0] == (1 if any(w**2 for w in weight) else 0)
    assert (top[1:] <= 0.5).all()
    assert torch.equal(compute_lamp_scores(torch.tensor([weight]) * factor), scores)


def test_profile_is_that_of_one_sort() -> None:
    subject = PrunableModel(tiny_llama(layers=2))
    scores = [reference(v.read().flatten().tolist()) for v in subject.views.values()]
    total = Budget(0.7).n_removed(subject.layout)
    threshold = np.sort(np.concatenate(scores))[total]
    below = [sum(s < threshold for s in unit) for unit in scores]
    np.testing.assert_allclose(allocated(subject, 0.7).removed, below, atol=1)
    assert np.std(below / subject.layout.counts) > 0.01  # not just uniform


def test_scale_of_a_unit_changes_nothing() -> None:
    subject = PrunableModel(tiny_llama())
    before = allocated(subject, 0.7)
    for index, view in enumerate(subject.views.values()):
        view.write(view.read() * 2.0 ** (index % 5))
    assert allocated(subject, 0.7) == before


def test_no_unit_is_emptied() -> None:
    subject = PrunableModel(tiny_llama())
    view = subject.views[subject.layout[2].name]
    weight = view.read() * 1e-4
    weight[0, 0] = 100.0  # all others have scores of about 0
    view.write(weight)
    found = allocated(subject, 0.99)
    left = subject.layout.counts - np.array(found.removed)
    assert left[2] == 1
    assert left.min() == 1
    assert found.n_removed == Budget(0.99).n_removed(subject.layout)


def test_units_are_emptied_only_by_the_budget() -> None:
    subject = PrunableModel(tiny_llama())
    n_units = len(subject.layout)
    total = subject.layout.n_weights
    found = allocated(subject, (total - n_units) / total)
    assert set(subject.layout.counts - np.array(found.removed)) == {1}
    fewer = allocated(subject, (total - n_units + 2) / total)
    assert sorted(subject.layout.counts - np.array(fewer.removed))[:3] == [0, 0, 1]


def test_order_changes_nothing_despite_ties() -> None:
    subject = PrunableModel(tiny_llama())
    for view in subject.views.values():
        view.write((view.read() * 8).round() / 8)
    subject = PrunableModel(subject.model)
    found = allocated(subject, 0.77)
    for view in subject.views.values():
        view.write(view.read().flip(0, 1).neg())
    assert allocated(subject, 0.77) == found


def test_equal_magnitudes_keep_equally_many() -> None:
    subject = PrunableModel(tiny_llama())
    for view in subject.views.values():
        view.write(view.read().sign() * 3)
    left = subject.layout.counts - np.array(allocated(subject, 0.8).removed)
    np.testing.assert_allclose(left, left.mean(), atol=1)


def test_weights_must_be_finite() -> None:
    subject = PrunableModel(tiny_llama())
    next(iter(subject.views.values())).read()[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        allocated(subject, 0.5)
    assert not LAMPAllocator.needs_text
