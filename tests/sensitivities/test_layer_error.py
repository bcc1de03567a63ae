from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.registry import PRUNERS
from sparsity_search.sensitivities.layer_error import LayerErrorSensitivity
from sparsity_search.testing.models import tiny_llama
from tests.helpers.sensitivity_oracles import module_inputs, pruned_weights

LEVELS = (0.2, 0.55, 0.8)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    ("units", "name", "bias"),
    [
        ("weights", "wanda", False),
        ("weights", "sparsegpt", True),
        ("width", "wanda_sp", False),
        ("width", "flap", False),  # adds a bias to the layer that reads
        ("width", "flap", True),
        ("heads", "wanda_sp", True),
        ("sublayers", "drop", False),
    ],
)
def test_is_the_error_of_the_outputs(
    units: str, name: str, bias: bool, relative: bool, tiny_tokens: Tensor
) -> None:
    model = tiny_llama(layers=2, attention_bias=bias, mlp_bias=bias)
    subject, pruner = PrunableModel(model, units=units), PRUNERS.create(name)
    counts = build_count_tables(subject.layout, LEVELS)
    found = LayerErrorSensitivity(relative=relative).measure(
        subject, tiny_tokens, pruner, counts, seed=3
    )
    assert found.pairs is None
    for (unit, levels), losses in zip(
        pruned_weights(subject, tiny_tokens, pruner, counts, seed=3), found.losses, strict=True
    ):
        view, inputs = subject.views[unit.name], module_inputs(subject, unit.name, tiny_tokens)
        shape, dense = view.structures, view.read().double()
        expected = []
        for level in levels:
            change = level.double() - dense
            outputs = inputs @ (change if shape is None else shape.consumer(change)).T
            if shape is not None:
                outputs = outputs + shape.bias(change)[:, 0]
            expected.append(float(outputs.square().sum(1).mean()))
        reader = dense if shape is None else shape.consumer(dense)
        size = float((inputs @ reader.T).square().sum(1).mean()) if relative else 1.0
        expected = np.maximum.accumulate(expected) / size
        np.testing.assert_allclose(losses, expected, rtol=2e-4, atol=1e-7)


def test_all_removed_is_one(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    counts = [(unit.count,) for unit in tiny_subject.layout]
    found = LayerErrorSensitivity().measure(
        tiny_subject, tiny_tokens, PRUNERS.create("wanda"), counts
    )
    np.testing.assert_allclose(np.concatenate(found.losses), 1, rtol=1e-5)


def test_an_empty_unit_loses_nothing(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    name = "model.layers.2.mlp.up_proj"
    tiny_subject.views[name].module.weight.zero_()
    subject = PrunableModel(tiny_subject.model)
    counts = build_count_tables(subject.layout, LEVELS)
    found = LayerErrorSensitivity().measure(subject, tiny_tokens, PRUNERS.create("wanda"), counts)
    assert found.losses[subject.layout.position(name)].tolist() == [0.0]


def test_blocks_are_refused(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="blocks")
    with pytest.raises(ConfigError, match="blocks"):
        LayerErrorSensitivity().measure(subject, tiny_tokens, PRUNERS.create("drop"), [(1,)] * 3)


def test_not_finite(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    tiny_subject.views["model.layers.1.self_attn.q_proj"].module.weight[0, 0] = torch.inf
    counts = build_count_tables(tiny_subject.layout, LEVELS)
    with pytest.raises(NumericalError):
        LayerErrorSensitivity().measure(
            tiny_subject, tiny_tokens, PRUNERS.create("magnitude"), counts
        )
