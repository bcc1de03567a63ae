from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

import sparsity_search.allocators.owl as module
from sparsity_search.allocators.owl import OWLAllocator, compute_outlier_ratio
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama

Given = Callable[..., np.ndarray]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor) -> Given:
    """Return OWL's profile for given outlier ratios of blocks."""

    def allocate(ratios: ArrayLike, target: float = 0.7, **settings: float) -> np.ndarray:
        left = iter(np.asarray(ratios))
        monkeypatch.setattr(module, "compute_outlier_ratio", lambda *_: next(left))
        subject = PrunableModel(tiny_llama(layers=np.size(ratios)))
        found = OWLAllocator(**settings).allocate(
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
    monkeypatch.setattr(module, "compute_outlier_ratio", lambda *_: ratio)
    bounds = Bounds.of(tiny_subject.layout)
    found = OWLAllocator().allocate(tiny_subject, tiny_tokens, Budget(0.37), bounds)
    assert found == Budget(0.37).uniform(tiny_subject.layout)


def test_zero_spread_gives_the_uniform_profile(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    bounds = Bounds.of(tiny_subject.layout)
    found = OWLAllocator(spread=0).allocate(tiny_subject, tiny_tokens, Budget(0.6), bounds)
    assert found == Budget(0.6).uniform(tiny_subject.layout)


@pytest.mark.parametrize(("a", "c"), [(100, 0), (1, 5), (0.01, -0.2)])
def test_affine_maps_of_the_ratios_change_nothing(given: Given, a: float, c: float) -> None:
    ratios = np.array([3.0, 1.0, 2.0, 7.0])
    np.testing.assert_allclose(given(a * ratios + c), given(ratios), atol=1e-9)


def test_more_outliers_keep_more(given: Given) -> None:
    assert np.argsort(given([3, 1, 2, 7])).tolist() == [3, 0, 2, 1]


def test_outlier_ratio() -> None:
    scores = [torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 6.0])]  # common mean 2
    assert compute_outlier_ratio(scores, m=1) == 0.2  # strictly above: 2 is not
    assert compute_outlier_ratio(scores, m=0.5) == 0.4
    assert compute_outlier_ratio(scores, m=3) == 0.0


def wanda_scores(subject: PrunableModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return ``|W| · rms(x)`` of each unit's consumer, flat, in float64, from the formula."""
    seen: dict[str, list[Tensor]] = {name: [] for name in subject.views}
    handles = []
    for name, inputs in seen.items():

        def hook(_: object, args: tuple[Tensor], name: str = name, to: list = inputs) -> None:
            to.append(subject.views[name].inputs(args[0]).flatten(0, -2).double())

        handles.append(subject.views[name].module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        subject.model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    found = {}
    for name, inputs in seen.items():
        view = subject.views[name]
        weight = view.read().double()
        weight = weight if view.structures is None else view.structures.consumer(weight)
        found[name] = (weight.abs() * torch.cat(inputs).square().mean(0).sqrt()).flatten()
    return found


def block_scores(subject: PrunableModel, tokens: Tensor) -> list[Tensor]:
    """Return the scores of all units of each block, flat, in float64."""
    scores = wanda_scores(subject, tokens)
    return [
        torch.cat([scores[unit.name] for unit in subject.units_of(block)])
        for block in range(len(subject.blocks))
    ]


def outliers(scores: Tensor, m: float) -> float:
    return float((scores > m * scores.mean()).double().mean())


@pytest.mark.parametrize("units", ["weights", "width", "heads"])
def test_is_the_formula_of_wanda_scores(units: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=4), units=units)
    ratios = [outliers(scores, 3) for scores in block_scores(subject, tiny_tokens)]
    assert 0.001 < min(ratios) < max(ratios) < 0.2
    expected = wanted(subject, [ratios[unit.block] for unit in subject.layout], 0.6, 0.1)
    found = OWLAllocator(m=3, spread=0.1).allocate(
        subject, tiny_tokens, Budget(0.6), Bounds.of(subject.layout)
    )
    assert_near(found, expected)


@pytest.mark.parametrize("units", ["weights", "width"])
def test_one_ratio_a_linear(units: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=2), units=units)
    scores = wanda_scores(subject, tiny_tokens)
    expected = wanted(subject, [outliers(scores[u.name], 2) for u in subject.layout], 0.4, 0.1)
    bounds = Bounds.of(subject.layout)
    found = OWLAllocator(m=2, spread=0.1, per="linear").allocate(
        subject, tiny_tokens, Budget(0.4), bounds
    )
    assert_near(found, expected)
    assert found != OWLAllocator(m=2, spread=0.1).allocate(
        subject, tiny_tokens, Budget(0.4), bounds
    )


def wanted(subject: PrunableModel, ratios: ArrayLike, target: float, spread: float) -> np.ndarray:
    """Return OWL's sparsities, centred by parameters; none may leave [0, 1]."""
    density = np.asarray(ratios) - np.min(ratios)
    density = 2 * spread * density / density.max()
    sizes = np.array([unit.size for unit in subject.layout])
    found = target - density + sizes @ density / sizes.sum()
    assert found.min() > 0
    assert found.max() < 1
    return found


def assert_near(found: SparsityProfile, expected: np.ndarray) -> None:
    """Assert that every unit has its sparsity, up to rounding to whole items.

    Structures are so few that their rounding shifts all units together; the projection knows.
    """
    counts = np.array([unit.count for unit in found.layout])
    off = np.abs(np.array(found.removed) - expected * counts)
    if not (found.layout.costs == 1).all():
        sizes = found.layout.counts * found.layout.costs
        budget = Budget(float(expected @ sizes / sizes.sum()))
        off = np.abs(np.array(found.removed) - budget.project(found.layout, expected).removed)
    assert (off < 1.5).all()


def test_not_finite_scores(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    name = "model.layers.2.mlp.down_proj"  # nothing reads its output
    tiny_subject.views[name].module.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=f"{name}: scores are not finite"):
        OWLAllocator().allocate(
            tiny_subject, tiny_tokens, Budget(0.4), Bounds.of(tiny_subject.layout)
        )


def test_outliers_in_the_model_are_found(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4)
    layer = model.model.layers[2].mlp.down_proj.weight
    layer[:, :6] *= 30
    subject = PrunableModel(model)
    found = OWLAllocator().allocate(subject, tiny_tokens, Budget(0.7), Bounds.of(subject.layout))
    assert np.argmin(by_block(found)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m": 0.0}, "m must be positive, not 0"),
        ({"spread": -0.1}, r"spread must lie in \[0, 1\), not -0.1"),
        ({"spread": 1.0}, r"spread must lie in \[0, 1\), not 1"),
        ({"per": "layer"}, "per must be one of block, linear, not 'layer'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("owl", **settings)
