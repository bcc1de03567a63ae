from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

import sparsity_search.allocators.dlp as module
from sparsity_search.allocators.dlp import DLPAllocator
from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.allocators.test_owl import ROUNDING, assert_near, block_scores, by_block


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.6, **settings: Any
) -> SparsityProfile:
    return DLPAllocator(**settings).allocate(
        subject, tokens, Budget(target), Bounds.of(subject.layout)
    )


def lower_median(scores: np.ndarray) -> float:
    return float(np.sort(scores)[(len(scores) - 1) // 2])


def expected(
    subject: PrunableModel, values: ArrayLike, target: float, spread: float
) -> np.ndarray:
    """Return the paper's map of the blocks' unimportance to units, centred by parameters."""
    importance = 1 - np.asarray(values) / np.sum(values)
    density = importance - importance.min()
    density = 2 * spread * density / density.max()
    density = np.array([density[unit.block] for unit in subject.layout])
    sizes = np.array([unit.size for unit in subject.layout])
    found = target - density + sizes @ density / sizes.sum()
    assert found.min() > 0
    assert found.max() < 1
    return found


@pytest.mark.parametrize("units", ["weights", "width", "heads"])
@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_is_the_formula_of_wanda_scores(statistic: str, units: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=4), units=units)
    centre = {"median": lower_median, "mean": np.mean}[statistic]
    values = [float(centre(s.numpy())) for s in block_scores(subject, tiny_tokens)]
    found = allocated(subject, tiny_tokens, spread=0.1, statistic=statistic)
    assert_near(found, expected(subject, values, 0.6, 0.1))


def test_unequal_blocks_are_centred_by_parameters(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=3), r"layers\.1\.mlp")
    values = [lower_median(s.numpy()) for s in block_scores(subject, tiny_tokens)]
    found = allocated(subject, tiny_tokens, 0.7)
    assert_near(found, expected(subject, values, 0.7, 0.15))


def test_a_higher_median_is_pruned_more(
    monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor
) -> None:
    values = iter([3.0, 1.0, 2.0, 7.0])
    monkeypatch.setattr(module, "compute_median", lambda _: next(values))
    found = by_block(allocated(PrunableModel(tiny_llama(layers=4)), tiny_tokens, 0.7))
    offsets = np.array([0.1, 0.0, 0.05, 0.3])
    np.testing.assert_allclose(found, 0.7 + offsets - offsets.mean(), atol=ROUNDING)


def test_median_is_of_all_scores_together() -> None:
    parts = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])]
    assert module.compute_median(parts) == 10
    assert module.compute_mean(parts) == pytest.approx(106 / 7)
    assert module.compute_median([torch.tensor([4.0, 1.0])]) == 1  # the lower of two


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_scale_of_all_scores_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor, statistic: str
) -> None:
    subject = PrunableModel(tiny_llama(layers=3))
    before = allocated(subject, tiny_tokens, statistic=statistic)
    name = f"compute_{statistic}"
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda scores: original([8 * s for s in scores]))
    assert allocated(subject, tiny_tokens, statistic=statistic) == before


def test_outliers_move_the_mean_and_not_the_median(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=3))
    before = [allocated(subject, tiny_tokens, statistic=s) for s in ("median", "mean")]
    down = subject.views["model.layers.2.mlp.down_proj"].module  # nothing reads its output
    down.weight[0, :8] *= 1e4
    median, mean = (allocated(subject, tiny_tokens, statistic=s) for s in ("median", "mean"))
    np.testing.assert_allclose(median.sparsities, before[0].sparsities, atol=0.01)
    assert np.argmax(by_block(mean)) == 2
    assert mean != before[1]


def test_equal_medians_and_zero_spread_give_the_uniform_profile(
    monkeypatch: pytest.MonkeyPatch, tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    uniform = Budget(0.37).uniform(tiny_subject.layout)
    assert allocated(tiny_subject, tiny_tokens, 0.37, spread=0) == uniform
    monkeypatch.setattr(module, "compute_median", lambda _: 0.25)
    assert allocated(tiny_subject, tiny_tokens, 0.37) == uniform


def test_mixture_of_experts(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral())
    by_block_ = allocated(subject, tiny_tokens, 0.7, spread=0.1).grouped("block")
    assert abs(by_block_[0] - by_block_[1]) == pytest.approx(0.2, abs=0.01)


def test_defaults() -> None:
    assert DLPAllocator() == DLPAllocator(spread=0.15, statistic="median")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spread": -0.1}, r"spread must lie in \[0, 1\), not -0.1"),
        ({"statistic": "max"}, "statistic must be one of median, mean, not 'max'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("dlp", **settings)
