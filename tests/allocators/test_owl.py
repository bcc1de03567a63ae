from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

import sparsity_search.allocators.owl as module
from sparsity_search.allocators.owl import OWL, outlier_ratio
from sparsity_search.budget import Bounds, Budget
from sparsity_search.errors import ConfigError
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.models.walk import walk
from sparsity_search.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.statistics import Statistic
from sparsity_search.testing.models import tiny_llama

Given = Callable[..., np.ndarray]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor) -> Given:
    """Return OWL's profile for given outlier ratios of blocks."""

    def allocate(ratios: ArrayLike, target: float = 0.7, **settings: float) -> np.ndarray:
        left = iter(np.asarray(ratios))
        monkeypatch.setattr(module, "outlier_ratio", lambda *_: next(left))
        subject = PrunableModel(tiny_llama(layers=np.size(ratios)))
        found = OWL(**settings).allocate(
            subject, tiny_tokens, Budget(target), Bounds.of(subject.layout)
        )
        return by_block(found)

    return allocate


def by_block(profile: SparsityProfile) -> np.ndarray:
    """Return the sparsity of each block; all its units must have it, up to rounding."""
    blocks = np.array(list(profile.grouped("block").values()))
    units = np.array([blocks[unit.block] for unit in profile.layout])
    np.testing.assert_allclose(profile.sparsities, units, atol=1.5 / 512)
    return blocks


#: Rounding moves a block by less than one weight in each of its seven units.
ROUNDING = 7 / 9216


def test_golden_example(given: Given) -> None:
    found = given([10, 1, 1, 1, 1, 1, 1, 1], target=0.7, spread=0.08)
    np.testing.assert_allclose(found, [0.56] + [0.72] * 7, atol=ROUNDING)


def test_hand_computed(given: Given) -> None:
    # densities 0, .05, .2 above the common one; their mean is 1/12
    found = given([0.01, 0.02, 0.05], target=0.5, spread=0.1)
    expected = 0.5 + 0.25 / 3 - np.array([0.0, 0.05, 0.2])
    np.testing.assert_allclose(found, expected, atol=ROUNDING)


@pytest.mark.parametrize("spread", [0.02, 0.08, 0.2])
def test_spread_is_twice_the_setting(given: Given, spread: float) -> None:
    found = given([3, 1, 2, 7], target=0.5, spread=spread)
    assert found.max() - found.min() == pytest.approx(2 * spread, abs=2 * ROUNDING)
    assert found.mean() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 0.02])
def test_equal_ratios_give_the_uniform_profile(
    monkeypatch: pytest.MonkeyPatch, tiny_subject: PrunableModel, tiny_tokens: Tensor, ratio: float
) -> None:
    monkeypatch.setattr(module, "outlier_ratio", lambda *_: ratio)
    bounds = Bounds.of(tiny_subject.layout)
    found = OWL().allocate(tiny_subject, tiny_tokens, Budget(0.37), bounds)
    assert found == Budget(0.37).uniform(tiny_subject.layout)


def test_zero_spread_gives_the_uniform_profile(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    bounds = Bounds.of(tiny_subject.layout)
    found = OWL(spread=0).allocate(tiny_subject, tiny_tokens, Budget(0.6), bounds)
    assert found == Budget(0.6).uniform(tiny_subject.layout)


@pytest.mark.parametrize(("a", "c"), [(100, 0), (1, 5), (0.01, -0.2)])
def test_affine_maps_of_the_ratios_change_nothing(given: Given, a: float, c: float) -> None:
    ratios = np.array([3.0, 1.0, 2.0, 7.0])
    np.testing.assert_allclose(given(a * ratios + c), given(ratios), atol=1e-9)


def test_more_outliers_keep_more(given: Given) -> None:
    assert np.argsort(given([3, 1, 2, 7])).tolist() == [3, 0, 2, 1]


def test_outlier_ratio() -> None:
    scores = [torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 6.0])]  # common mean 2
    assert outlier_ratio(scores, m=1) == 0.2  # strictly above: 2 is not
    assert outlier_ratio(scores, m=0.5) == 0.4
    assert outlier_ratio(scores, m=3) == 0.0


def test_ratios_are_those_of_wanda_scores(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    seen: dict[str, list[Tensor]] = {u.name: [] for u in tiny_subject.units_of(1)}
    for name, inputs in seen.items():
        module_ = tiny_subject.views[name].module
        module_.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
    with torch.inference_mode():
        tiny_subject.model(input_ids=tiny_tokens)
    scores = []
    for name, inputs in seen.items():
        rms = torch.cat([x.flatten(0, -2) for x in inputs]).double().square().mean(0).sqrt()
        scores.append((tiny_subject.views[name].read().double().abs() * rms).flatten())
        tiny_subject.views[name].module._forward_pre_hooks.clear()
    flat = torch.cat(scores)
    expected = float((flat > 3 * flat.mean()).double().mean())
    assert 0.001 < expected < 0.2
    visits = list(walk(tiny_subject, tiny_tokens, Statistic.NORM, rewritten=False))
    found = outlier_ratio(module.block_scores(tiny_subject, visits[1]), m=3)
    assert found == pytest.approx(expected, abs=1.5 / len(flat))


def test_outliers_in_the_model_are_found(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4)
    layer = model.model.layers[2].mlp.down_proj.weight
    layer[:, :6] *= 30
    subject = PrunableModel(model)
    found = OWL().allocate(subject, tiny_tokens, Budget(0.7), Bounds.of(subject.layout))
    assert np.argmin(by_block(found)) == 2


@pytest.mark.parametrize("settings", [{"m": 0.0}, {"spread": -0.1}, {"spread": 1.0}])
def test_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"m must be positive, and spread in \[0, 1\)"):
        ALLOCATORS.create("owl", **settings)
