from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.allocators.bases.thresholds import count_below_threshold, soften_bounds
from sparsity_search.allocators.global_magnitude import GlobalMagnitudeAllocator, read_magnitudes
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.fewer_experts import make

NOTHING = torch.empty(0, 0)


def layout_of(sizes: Sequence[int], costs: Sequence[int] | None = None) -> Layout:
    costs = costs or [1] * len(sizes)
    return Layout(
        [
            Unit(name=str(i), block=i, role="q", count=size, cost=cost)
            for i, (size, cost) in enumerate(zip(sizes, costs, strict=True))
        ]
    )


def counts_of(scores: Sequence[Sequence[float]], n_removed: int, **limits: float) -> list[float]:
    layout = layout_of([len(unit) for unit in scores])
    found = count_below_threshold(
        layout,
        lambda name: torch.tensor(scores[int(name)], dtype=torch.float32),
        Bounds.of(layout, **limits),
        n_removed,
    )
    return found.tolist()


def allocated(
    subject: PrunableModel, target: float, bounds: Bounds | None = None, **settings: float
) -> SparsityProfile:
    bounds = bounds or Bounds.of(subject.layout)
    return GlobalMagnitudeAllocator(**settings).allocate(subject, NOTHING, Budget(target), bounds)


#: Many ties, zeros, the smallest and the largest numbers.
SCORES = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 1e-45, 3e38]), st.floats(0, 8, width=32, exclude_min=True)
)


@settings(max_examples=60)
@given(data=st.data())
def test_threshold_is_that_of_a_sort(data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.lists(SCORES, min_size=1, max_size=7), min_size=1, max_size=4))
    sizes = np.array([len(unit) for unit in scores])
    lower = np.array([data.draw(st.integers(0, n)) for n in sizes])
    upper = np.array([data.draw(st.integers(a, n)) for a, n in zip(lower, sizes, strict=True)])
    costs = [data.draw(st.integers(1, 3)) for _ in sizes]
    layout, bounds = layout_of(sizes.tolist(), costs), Bounds(lower=lower, upper=upper)
    total = data.draw(st.integers(int(lower @ layout.costs), int(upper @ layout.costs)))
    found = count_below_threshold(
        layout, lambda name: torch.tensor(scores[int(name)]), bounds, total
    )
    assert found @ layout.costs == pytest.approx(total, abs=1e-9)
    values = sorted({np.float32(s) for unit in scores for s in unit})
    for value in values:  # the first threshold whose ties reach the total
        less = clipped([sum(np.float32(s) < value for s in unit) for unit in scores], bounds)
        upto = clipped([sum(np.float32(s) <= value for s in unit) for unit in scores], bounds)
        if upto @ layout.costs >= total:
            break
    tied = (upto - less) @ layout.costs
    share = (total - less @ layout.costs) / tied if tied else 0.0
    np.testing.assert_allclose(found, less + share * (upto - less), atol=1e-9)


def clipped(counts: Sequence[int], bounds: Bounds) -> np.ndarray:
    return np.clip(np.array(counts), bounds.lower, bounds.upper)


def test_neighbouring_floats_are_told_apart() -> None:
    above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    assert counts_of([[0.3, 5.0], [above, 5.0]], 1) == [1.0, 0.0]
    assert counts_of([[above, 5.0], [0.3, 5.0]], 1) == [0.0, 1.0]


def test_ties_are_shared_in_proportion() -> None:
    assert counts_of([[0.1, 1.0, 1.0, 1.0], [1.0] * 6], 4) == [2.0, 2.0]
    assert counts_of([[1.0] * 2, [1.0] * 6, [2.0]], 4) == [1.0, 3.0, 0.0]


def test_scores_may_span_many_magnitudes() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.lognormal(0, 9, 40).astype(np.float32).tolist() for _ in range(3)]
    limit = np.sort(np.concatenate(scores))[77]
    assert counts_of(scores, 77) == [sum(s < limit for s in unit) for unit in scores]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(NumericalError, match="not finite"):
        counts_of([[1.0, bad]], 1)


def test_soft_limits_hold_while_they_can() -> None:
    layout = layout_of([10, 20])
    bounds = Bounds.of(layout, 0.0, np.array([1.0, 0.5]))
    held = soften_bounds(layout, bounds, np.array([4.0, 15.9]), 14)
    assert (held.lower.tolist(), held.upper.tolist()) == ([0, 0], [4, 10])
    given_way = soften_bounds(layout, bounds, np.array([4.0, 15.9]), 15)
    assert (given_way.lower.tolist(), given_way.upper.tolist()) == ([4, 10], [10, 10])


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_masks_are_those_of_one_sort_of_the_model(target: float) -> None:
    subject = scaled_blocks([1.0, 0.7, 1.5])
    found = allocated(subject, target, floor=0.0)
    every = torch.cat([view.read().abs().flatten() for view in subject.views.values()])
    threshold = every.sort().values[Budget(target).n_removed(subject.layout)]
    below = [int((view.read().abs() < threshold).sum()) for view in subject.views.values()]
    assert found.removed == tuple(below)


def scaled_blocks(scales: Sequence[float]) -> PrunableModel:
    model = tiny_llama(layers=len(scales))
    for layer, scale in zip(model.model.layers, scales, strict=True):
        for parameter in layer.parameters():
            parameter *= scale
    return PrunableModel(model)


def test_order_of_rows_and_units_changes_nothing() -> None:
    subject = scaled_blocks([1.0, 0.7, 1.5])
    for view in subject.views.values():  # few magnitudes, so that ties are massive
        view.write((view.read() * 8).round() / 8)
    subject = PrunableModel(subject.model)
    found = allocated(subject, 0.6)
    for view in subject.views.values():
        view.write(view.read().flip(0, 1))
    assert allocated(subject, 0.6) == found


def test_equal_magnitudes_give_the_uniform_profile() -> None:
    subject = scaled_blocks([1.0, 1.0])
    for view in subject.views.values():
        view.write(view.read().sign())
    assert allocated(subject, 0.37) == Budget(0.37).uniform(subject.layout)


def test_small_units_keep_their_floor() -> None:
    subject = scaled_blocks([1.0, 0.01, 1.0])
    found = allocated(subject, 0.5, floor=0.2)
    small = np.array([unit.block == 1 for unit in subject.layout])
    kept = subject.layout.counts - np.array(found.removed)
    np.testing.assert_array_equal(kept[small], np.ceil(0.2 * subject.layout.counts[small]))
    assert allocated(subject, 0.5, floor=0.0).sparsities[small].min() == 1.0


def test_floor_gives_way_to_the_budget() -> None:
    subject = scaled_blocks([1.0, 0.01, 1.0])
    found = allocated(subject, 0.9, floor=0.2)
    assert found.sparsities[np.array([u.block == 1 for u in subject.layout])].min() == 1.0
    assert found.sparsities.min() >= 0.8 - 1e-3
    assert found.n_removed == Budget(0.9).n_removed(subject.layout)


@pytest.mark.parametrize("units", ["width", "heads", "experts"])
def test_structures_have_the_root_mean_square_of_their_weights(units: str) -> None:
    subject = PrunableModel(tiny_mixtral() if units == "experts" else tiny_llama(), units=units)
    first = subject.views[subject.layout[0].name]
    first.write(first.read() * 0.8)
    found = allocated(subject, 0.4, floor=0.0)
    costs = subject.layout.costs
    scores = [read_magnitudes(view).tolist() for view in subject.views.values()]
    view = subject.views[subject.layout[-1].name]
    shape = view.structures
    assert shape is not None
    bodies = shape.bodies(view.read()).double().numpy()
    means = np.sqrt((bodies**2).mean(axis=(0, 2)))
    assert scores[-1] == pytest.approx(np.sort(means), rel=1e-5)
    expected = np.zeros(len(costs))
    for _, unit in sorted((s, u) for u, each in enumerate(scores) for s in each):
        if (expected @ costs) + costs[unit] > Budget(0.4).n_removed(subject.layout):
            break
        expected[unit] += 1
    # the structure at the threshold does not fit; what is left of the budget goes elsewhere
    assert np.abs(found.removed - expected) @ costs < costs.max()
    assert expected.std() > 0


def test_items_of_groups_are_the_least_of_each() -> None:
    """Two groups of four experts: an item is the r-th smallest of one and that of the other."""
    view = PrunableModel(make("deepseek_v3"), units="experts").views["model.layers.1.mlp"]
    assert view.structures is not None
    squares = view.structures.bodies(view.read()).double().square().mean(dim=(0, 2)).tolist()
    pairs = zip(sorted(squares[:4]), sorted(squares[4:]), strict=True)
    expected = [((one + other) / 2) ** 0.5 for one, other in pairs]
    assert read_magnitudes(view).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_floor_keeps_one_structure() -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    view = subject.views[subject.layout[0].name]
    view.write(view.read() * 1e-3)
    assert allocated(subject, 0.5).removed[0] == subject.layout.counts[0] - 1
    assert allocated(subject, 0.5, floor=0.0).removed[0] == subject.layout.counts[0]


def test_existing_zeros_go_first() -> None:
    subject = scaled_blocks([1.0, 1.0])
    view = subject.views[subject.layout[3].name]
    weight = view.read().clone()
    weight[:, ::2] = 0
    view.write(weight)
    subject = PrunableModel(subject.model)
    found = allocated(subject, 0.05)
    assert found.removed[3] >= weight.numel() // 2
    assert found.n_removed == Budget(0.05).n_removed(subject.layout)


@pytest.mark.parametrize("floor", [-0.1, 1.0, float("nan")])
def test_settings(floor: float) -> None:
    with pytest.raises(ConfigError, match=r"floor.* must be (in \[0, 1\)|a finite number)"):
        ALLOCATORS.create("global_magnitude", floor=floor)
    assert not GlobalMagnitudeAllocator.needs_text
