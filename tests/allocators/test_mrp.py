from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsity_search.allocators.mrp as module
from sparsity_search.allocators.mrp import MRPAllocator, compute_redundancies, descend
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.7, **settings: Any
) -> SparsityProfile:
    return MRPAllocator(**settings).allocate(
        subject, tokens, Budget(target), Bounds.of(subject.layout)
    )


def redundancy(units: list[np.ndarray], sparsity: float, m: float) -> float:
    """Return it as it is defined: prune, look at all scores, count among those that are kept."""
    pruned, kept = [], []
    for scores in units:
        gone = np.argsort(scores, kind="stable")[: round(sparsity * len(scores))]
        zeroed = scores.copy()
        zeroed[gone] = 0
        pruned.append(zeroed)
        kept.append(np.delete(scores, gone))
    left = np.concatenate(kept)
    usual = left <= m * np.concatenate(pruned).mean()
    return float(usual.mean()) if len(left) else 0.0


def rising(units: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(u)).float() for u in units]


def scores_of(seed: int, sizes: tuple[int, ...] = (40, 100, 20)) -> list[np.ndarray]:
    source = np.random.default_rng(seed)
    return [source.exponential(size=n).astype(np.float32) * 2.0**i for i, n in enumerate(sizes)]


@pytest.mark.parametrize("m", [0.5, 2.0, 5.0])
def test_redundancy_is_its_definition(m: float) -> None:
    units = scores_of(0)
    grid = np.array([0.0, 0.15, 0.33, 0.5, 0.8, 0.95, 1.0])
    found = compute_redundancies(rising(units), grid, m)
    assert found.tolist() == pytest.approx([redundancy(units, s, m) for s in grid])
    assert found[0] > 0.3
    assert found[-1] == 0


def test_hand_computed() -> None:
    first, second = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([4.0, 4.0])
    # sums 24, 20, 17 (of 6); after half of each: kept 3, 10 and 4
    found = compute_redundancies([first, second], np.array([0.0, 0.5]), m=1)
    # 4 is no outlier at a limit of 4; at 17 / 6 all that is kept is one
    assert found.tolist() == pytest.approx([5 / 6, 0])
    found = compute_redundancies([first, second], np.array([0.5]), m=1.2)
    assert found.tolist() == pytest.approx([1 / 3])  # the limit is 3.4


def test_dense_redundancy_is_that_of_owl() -> None:
    scores = np.concatenate([np.full(90, 1.0), np.full(10, 30.0)])  # mean 3.9
    found = compute_redundancies(rising([scores]), np.array([0.0]), m=5)
    assert found.tolist() == pytest.approx([0.9])
    assert compute_redundancies(rising([scores]), np.array([0.0]), m=8).tolist() == [1.0]


@given(st.integers(0, 1000), st.floats(0.5, 8))
def test_never_rises(seed: int, m: float) -> None:
    found = compute_redundancies(rising(scores_of(seed)), np.linspace(0, 1, 21), m)
    assert (np.diff(found) <= 1e-12).all()


@given(st.integers(0, 1000), st.integers(-20, 20))
def test_scale_does_not_matter(seed: int, power: int) -> None:
    units, grid = scores_of(seed), np.linspace(0.1, 0.9, 9)
    scaled = [u * np.float32(2.0**power) for u in units]
    assert np.array_equal(
        compute_redundancies(rising(units), grid, 3), compute_redundancies(rising(scaled), grid, 3)
    )


def greedy(tables: np.ndarray, grid: np.ndarray, sizes: list[int], total: float) -> list[float]:
    """Return what each block loses, one block at a time; no two are ever equal."""
    place = [0] * len(sizes)
    removed = [grid[0] * n for n in sizes]
    while sum(removed) < total:
        block = max(range(len(sizes)), key=lambda b: tables[b][place[b]])
        place[block] += 1
        step = (grid[place[block]] - grid[place[block] - 1]) * sizes[block]
        removed[block] += min(step, total - sum(removed))
    return removed


def free(sizes: list[int]) -> Bounds:
    return Bounds(lower=np.zeros(len(sizes)), upper=np.array(sizes, dtype=float))


@pytest.mark.parametrize("part", [0.25, 0.37, 0.5, 0.7, 0.9])
def test_most_redundant_goes_first(part: float) -> None:
    sizes, grid = [100, 300, 50, 200], np.linspace(0.2, 1, 41)
    source = np.random.default_rng(7)
    tables = np.sort(source.uniform(size=(4, 41)))[:, ::-1]
    total = part * sum(sizes)
    found = descend(tables, grid, np.array(sizes), free(sizes), total)
    assert found.tolist() == pytest.approx(greedy(tables, grid, sizes, total))
    assert found.sum() == pytest.approx(total)


def test_levels_what_is_left() -> None:
    # straight lines of redundancy: in the end all are equal, to within a step
    sizes, grid = [100, 300, 200], np.linspace(0, 1, 1001)
    tables = np.array([0.9, 0.8, 1.0])[:, None] - np.array([0.5, 0.4, 0.6])[:, None] * grid
    found = descend(tables, grid, np.array(sizes), free(sizes), 330)
    left = [0.9, 0.8, 1.0] - np.array([0.5, 0.4, 0.6]) * found / sizes
    assert np.ptp(left) < 1e-3


def test_equal_blocks_go_together() -> None:
    sizes, grid = [10, 30, 20], np.array([0.0, 0.3, 0.6, 1.0])
    tables = np.ones((3, 4))
    found = descend(tables, grid, np.array(sizes), free(sizes), 24)
    np.testing.assert_allclose(found / sizes, 0.4)
    tables[1] = 0.5
    found = descend(tables, grid, np.array(sizes), free(sizes), 24)
    np.testing.assert_allclose(found / sizes, [0.8, 0, 0.8])
    # no redundancy left anywhere: the least sparse go on
    tables = np.array([[0.9, 0.8, 0.0, 0.0], [0.0] * 4, [0.0] * 4])
    found = descend(tables, grid, np.array(sizes), free(sizes), 21)
    np.testing.assert_allclose(found / sizes, [0.6, 0.3, 0.3])
    found = descend(tables, grid, np.array(sizes), free(sizes), 33)
    np.testing.assert_allclose(found / sizes, [0.6, 0.54, 0.54])


def test_limits() -> None:
    sizes, grid = np.array([10.0, 10, 10]), np.linspace(0, 1, 11)
    tables = np.array([0.9, 0.5, 0.1])[:, None] * np.ones(11)
    limits = Bounds(lower=np.array([0.0, 2, 3]), upper=np.array([4.0, 8, 10]))
    assert descend(tables, grid, sizes, limits, 8).tolist() == pytest.approx([3, 2, 3])
    assert descend(tables, grid, sizes, limits, 13).tolist() == pytest.approx([4, 6, 3])
    assert descend(tables, grid, sizes, limits, 22).tolist() == pytest.approx([4, 8, 10])
    assert descend(tables, grid, sizes, limits, 5).tolist() == pytest.approx([0, 2, 3])


@pytest.mark.parametrize("metric", ["wanda", "magnitude"])
def test_profile(metric: str, tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4)
    model.model.layers[1].mlp.down_proj.weight[:, :5] *= 20
    model.model.layers[2].mlp.up_proj.weight[:3] *= 8
    subject = PrunableModel(model)
    units: dict[int, list[np.ndarray]] = {}
    for visit in walk(subject, tiny_tokens, Statistic.NORM, rewritten=False):
        for unit in visit.units:
            scores = subject.views[unit.name].read().abs()
            if metric == "wanda":
                scores = scores * visit.statistics[unit.name].norms()
            units.setdefault(unit.block, []).append(scores.flatten().numpy())
    grid = np.minimum(0.3 + 0.02 * np.arange(36), 1)
    tables = np.array([[redundancy(units[b], s, 3.0) for s in grid] for b in range(4)])
    expected = np.array(greedy(tables, grid, [9216] * 4, 0.6 * 4 * 9216)) / 9216
    found = allocated(subject, tiny_tokens, 0.6, m=3.0, step=0.02, metric=metric)
    assert list(found.grouped("block").values()) == pytest.approx(expected, abs=1e-3)
    assert np.ptp(expected) > 0.02
    blocks = np.array([expected[unit.block] for unit in subject.layout])
    np.testing.assert_allclose(found.sparsities, blocks, atol=2e-3)


def test_outliers_protect_a_block(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4)
    model.model.layers[2].mlp.down_proj.weight[:, :6] *= 30
    subject = PrunableModel(model)
    found = allocated(subject, tiny_tokens, 0.5).grouped("block")
    assert min(found, key=lambda b: found[b]) == 2


def test_magnitude_needs_no_text(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    def runs(*_: object) -> None:
        raise AssertionError("the model ran")

    tiny_subject.model.get_input_embeddings().register_forward_pre_hook(runs)
    allocated(tiny_subject, tiny_tokens, metric="magnitude")
    with pytest.raises(AssertionError, match="the model ran"):
        allocated(tiny_subject, tiny_tokens)


@pytest.mark.parametrize("target", [0.1, 0.373, 0.7])
def test_uniform(
    monkeypatch: pytest.MonkeyPatch,
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    target: float,
) -> None:
    uniform = Budget(target).uniform(tiny_subject.layout)
    assert allocated(tiny_subject, tiny_tokens, target, start=1) == uniform
    monkeypatch.setattr(
        module, "compute_redundancies", lambda _, grid, m: np.linspace(1, 0, len(grid))
    )
    assert allocated(tiny_subject, tiny_tokens, target) == uniform


def test_constant_scores_give_the_uniform_profile(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    subject = PrunableModel(model)
    for view in subject.views.values():
        view.write(torch.full_like(view.read(), 0.25))
    found = allocated(subject, tiny_tokens, 0.373, metric="magnitude")
    assert found == Budget(0.373).uniform(subject.layout)


def test_unequal_blocks(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=4), r"layers\.1\.mlp|layers\.2\.")
    found = allocated(subject, tiny_tokens, 0.6, m=2.0)
    assert found.n_removed == Budget(0.6).n_removed(subject.layout)
    assert sorted(found.grouped("block")) == [0, 1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m": 0.0}, "m must be positive"),
        ({"start": 1.1}, r"start must lie in 0 … 1"),
        ({"step": 0.0}, "step must be above 0"),
        ({"metric": "sparsegpt"}, "metric must be one of wanda, magnitude"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("mrp", **settings)


@pytest.mark.parametrize("metric", ["wanda", "magnitude"])
def test_errors(metric: str, tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="scores are not finite"):
        allocated(PrunableModel(model), tiny_tokens, metric=metric)
