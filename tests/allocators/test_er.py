from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.allocators.bases.thresholds import keep_in_proportion
from sparsity_search.allocators.er import ERAllocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

NOTHING = torch.empty(0, 0)


def layout_of(shapes: list[tuple[int, int]]) -> Layout:
    return Layout(
        [
            Unit(name=str(i), block=i, role="q", count=rows * columns)
            for i, (rows, columns) in enumerate(shapes)
        ]
    )


def sparsities(shapes: list[tuple[int, int]], target: float) -> np.ndarray:
    layout = layout_of(shapes)
    sides = np.array([rows + columns for rows, columns in shapes])
    total = Budget(target).n_removed(layout)
    removed = keep_in_proportion(layout, sides, Bounds.of(layout), total)
    assert removed.sum() == total
    return removed / layout.counts


def test_golden_llama_7b() -> None:
    attention, feed_forward = [(4096, 4096)] * 4, [(11008, 4096)] * 2 + [(4096, 11008)]
    found = sparsities((attention + feed_forward) * 2, 0.7).reshape(2, 7)
    np.testing.assert_allclose(found[:, :4], 0.620328, atol=1e-6)
    np.testing.assert_allclose(found[:, 4:], 0.739527, atol=1e-6)


def test_what_would_be_denser_than_dense_stays_dense() -> None:
    # eps = 1.2 would give the first (10 + 10) * 1.2 / 100 and the second 2.4 / 1 of what it holds
    found = sparsities([(100, 100), (2, 2), (50, 100)], 0.5)
    assert found[1] == 0
    kept = (1 - found) * [10000, 4, 5000]
    assert kept[0] / kept[2] == pytest.approx(200 / 150, abs=1e-3)


@settings(max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    target=st.floats(0.05, 0.95),
)
def test_is_what_fixing_the_densest_gives(shapes: list[tuple[int, int]], target: float) -> None:
    sides = np.array([sum(shape) for shape in shapes])
    counts = np.array([rows * columns for rows, columns in shapes])
    kept = counts.sum() - Budget(target).n_removed(layout_of(shapes))
    dense = np.zeros(len(shapes), dtype=bool)
    while not dense.all():  # fix the densest of those above 1, solve for the others again
        epsilon = (kept - counts[dense].sum()) / sides[~dense].sum()
        density = np.where(dense, 0, epsilon * sides / counts)
        if density.max() <= 1:
            break
        dense[density.argmax()] = True
    expected = np.where(dense, counts, epsilon * sides)
    found = (1 - sparsities(shapes, target)) * counts
    np.testing.assert_allclose(found, expected, atol=1 + 1e-6)


@pytest.mark.parametrize("target", [0.2, 0.7])
def test_model_is_pruned_by_its_shapes(target: float) -> None:
    subject = PrunableModel(tiny_llama(layers=2))
    bounds = Bounds.of(subject.layout)
    found = ERAllocator().allocate(subject, NOTHING, Budget(target), bounds)
    kept = (subject.layout.counts - np.array(found.removed))[:7]
    # q and o are (32, 32), k and v (16, 32), the others (64, 32); at 0.2 k and v are full
    sides = np.array([64, 48, 48, 64, 96, 96, 96])
    counts = subject.layout.counts[:7]
    free = kept < counts
    assert free.sum() == (5 if target == 0.2 else 7)
    np.testing.assert_allclose(kept[free] / sides[free], (kept / sides)[free].mean(), atol=0.03)
    assert found.removed[:7] == pytest.approx(found.removed[7:], abs=1)


def test_units_of_one_shape_get_one_sparsity() -> None:
    subject = PrunableModel(tiny_llama(), exclude=r"mlp|[kv]_proj")
    found = ERAllocator().allocate(subject, NOTHING, Budget(0.37), Bounds.of(subject.layout))
    np.testing.assert_allclose(found.removed, 0.37 * 1024, atol=1)


def test_bounds_are_solved_for_again() -> None:
    shapes = [(40, 40), (10, 40), (40, 80)]
    layout, sides = layout_of(shapes), np.array([80, 50, 120])
    bounds = Bounds.of(layout, [0.7, 0.0, 0.0], 1.0)
    removed = keep_in_proportion(layout, sides, bounds, 2600)
    assert removed[0] == 1120
    kept = layout.counts - removed
    assert kept[1] / kept[2] == pytest.approx(50 / 120, abs=0.01) or kept[1] == 400
    assert removed.sum() == 2600


def test_matrices_of_experts() -> None:
    subject = PrunableModel(tiny_mixtral(layers=1))
    found = ERAllocator().allocate(subject, NOTHING, Budget(0.6), Bounds.of(subject.layout))
    roles = found.grouped("role")
    kept = {role: (1 - roles[role]) * 32 for role in ("expert_gate_up", "expert_down")}
    # (32, 32) and (32, 16)
    assert kept["expert_gate_up"] * 32 / (kept["expert_down"] * 16) == pytest.approx(
        64 / 48, abs=0.02
    )


def test_no_text_is_read() -> None:
    assert not ERAllocator.needs_text
