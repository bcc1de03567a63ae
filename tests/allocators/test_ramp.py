from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_search.allocators.ramp import RampAllocator
from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.allocators.test_owl import ROUNDING

NO_TEXT = torch.empty(0, 0, dtype=torch.int64)


def allocated(subject: PrunableModel, target: float = 0.6, **settings: float) -> SparsityProfile:
    plugin = RampAllocator(**settings)
    return plugin.allocate(subject, NO_TEXT, Budget(target), Bounds.of(subject.layout))


class Stub:
    """Stands for a model where only its layout is read."""

    units = "weights"

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


def stub(blocks: int, size: int = 1_000_000) -> PrunableModel:
    units = [Unit(name=str(b), block=b, role="q", count=size) for b in range(blocks)]
    return Stub(Layout(units))  # type: ignore[return-value]


def test_golden_progression() -> None:
    # ATP: 32 blocks, S = 0.7, difference 0.01
    found = allocated(stub(32), 0.7, slope=0.01).sparsities
    np.testing.assert_allclose(found, 0.545 + 0.01 * np.arange(32), atol=1e-6)
    assert found[-1] == pytest.approx(0.855, abs=1e-6)


@pytest.mark.parametrize("target", [0.3, 0.7])
@pytest.mark.parametrize("slope", [0.002, -0.004, 0.01])
def test_closed_form(target: float, slope: float) -> None:
    found = allocated(stub(20), target, slope=slope).sparsities
    expected = target - slope * 19 / 2 + slope * np.arange(20)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_default_slope() -> None:
    assert allocated(stub(9)) == allocated(stub(9), slope=0.007)


def test_reversed_slope_reverses_the_ramp() -> None:
    up = allocated(stub(7), 0.4, slope=0.03).sparsities
    down = allocated(stub(7), 0.4, slope=-0.03).sparsities
    np.testing.assert_allclose(up, down[::-1], atol=2e-6)


def test_zero_slope_and_one_block_are_uniform() -> None:
    subject = PrunableModel(tiny_llama())
    uniform = Budget(0.37).uniform(subject.layout)
    assert allocated(subject, 0.37, slope=0.0) == uniform
    subject = PrunableModel(tiny_llama(layers=1))
    assert allocated(subject, 0.37) == Budget(0.37).uniform(subject.layout)


def test_a_steep_slope_is_clipped() -> None:
    found = allocated(stub(5), 0.5, slope=0.3).sparsities
    np.testing.assert_allclose(found, [0, 0.2, 0.5, 0.8, 1], atol=1e-6)
    assert found.mean() == pytest.approx(0.5)


def test_units_share_the_sparsity_of_their_depth() -> None:
    # a block without units keeps its place, and unequal blocks meet the budget by parameters
    subject = PrunableModel(tiny_llama(layers=4), r"layers\.1\.|layers\.3\.mlp")
    found = allocated(subject, 0.6, slope=0.05).grouped("block")
    assert found[2] - found[0] == pytest.approx(0.1, abs=2 * ROUNDING)
    assert found[3] - found[2] == pytest.approx(0.05, abs=2 * ROUNDING)


def test_structures_and_experts() -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    assert allocated(subject, 0.5, slope=0.1) != Budget(0.5).uniform(subject.layout)
    found = allocated(PrunableModel(tiny_mixtral(), units="experts"), 0.5, slope=0.3)
    assert found.grouped("block")[0] < 0.5 < found.grouped("block")[1]


@pytest.mark.parametrize("slope", [1.5, float("nan")])
def test_settings(slope: float) -> None:
    with pytest.raises(ConfigError, match=r"slope(:| must lie in \[-1, 1\])"):
        ALLOCATORS.create("ramp", slope=slope)


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
def test_units_that_go_as_a_whole(units: str) -> None:
    with pytest.raises(ConfigError, match=units):
        allocated(PrunableModel(tiny_llama(), units=units))
