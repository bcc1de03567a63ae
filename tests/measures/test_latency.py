from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ConfigError
from sparsity_search.measures import latency
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import MEASURES
from sparsity_search.testing.models import tiny_llama


@pytest.fixture
def parameters_as_time(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Time is what a model's parameters are, plus a drift: the machine slows down."""
    runs: list[int] = []

    def seconds(model: PreTrainedModel, tokens: Tensor) -> float:
        runs.append(tokens.numel())
        return model.num_parameters() + 0.01 * len(runs)

    monkeypatch.setattr(latency, "_measure_seconds", seconds)
    return runs


@pytest.mark.parametrize("kind", ["width", "heads"])
def test_time_in_weights_is_weights(kind: str, parameters_as_time: list[int]) -> None:
    subject = PrunableModel(tiny_llama(layers=5), units=kind)
    measure = MEASURES.create("latency", points=3, repeats=3, length=8, batch=2, blocks=4)
    curves = measure.curves(subject)
    for unit, curve in zip(subject.layout, curves, strict=True):
        exact = [removed * unit.cost for removed in curve.removed[:-1]]
        # the last point keeps one item, as no block goes without
        exact.append((unit.count - 1) * unit.cost)
        assert curve.saved == pytest.approx(exact, abs=0.1)
    channels = curves[1].removed
    assert channels == (0, 21, 42, 63, 64)
    assert set(parameters_as_time) == {16}
    # both models, with the first time, for each point: three widths, and one to three heads
    points = sum(len(curve.removed) - 2 for curve in curves[:2])
    assert len(parameters_as_time) == 2 * (1 + 3) * points


def test_blocks_must_be_alike(parameters_as_time: list[int]) -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    linear = subject.model.get_submodule("model.layers.1.mlp.down_proj")
    linear.weight = torch.nn.Parameter(torch.ones(32, 60), requires_grad=False)
    for name in ("gate_proj", "up_proj"):
        maker = subject.model.get_submodule(f"model.layers.1.mlp.{name}")
        maker.weight = torch.nn.Parameter(torch.ones(60, 32), requires_grad=False)
    with pytest.raises(ConfigError, match="all blocks alike, and these differ"):
        MEASURES.create("latency").curves(subject)


def test_units_left_alone_have_no_curve(parameters_as_time: list[int]) -> None:
    subject = PrunableModel(tiny_llama(), "layers.0.mlp", "width")
    assert len(MEASURES.create("latency", points=1).curves(subject)) == len(subject.layout) == 5


@pytest.mark.parametrize("name", ["length", "batch", "points", "repeats", "blocks"])
def test_settings_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
        MEASURES.create("latency", **{name: 0})
