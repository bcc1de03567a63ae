from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.registry import PRUNERS, SENSITIVITIES
from sparsity_search.sensitivities.block_error import BlockErrorSensitivity
from sparsity_search.testing.models import tiny_llama
from tests.helpers.sensitivity_oracles import block_states, pruned_weights, written


@pytest.mark.parametrize(
    ("units", "name", "exclude"),
    [
        ("weights", "wanda", None),
        ("weights", "sparsegpt", r"layers\.1\."),  # a block without units
        ("width", "flap", None),
        ("blocks", "drop", None),
    ],
)
def test_is_the_error_of_the_block(
    units: str, name: str, exclude: str | None, tiny_tokens: Tensor
) -> None:
    subject, pruner = PrunableModel(tiny_llama(), exclude, units), PRUNERS.create(name)
    counts = build_count_tables(subject.layout, (0.3, 0.7))
    method = BlockErrorSensitivity(sequences=9, length=11)
    found = method.measure(subject, tiny_tokens, pruner, counts, seed=2)
    text = tiny_tokens[:9, :11]
    for (unit, levels), losses in zip(
        pruned_weights(subject, tiny_tokens, pruner, counts, seed=2), found.losses, strict=True
    ):
        before, after = block_states(subject, unit.block, text)
        expected = []
        for level in levels:
            with written(subject, unit.name, level):
                moved = block_states(subject, unit.block, text)[1]
            expected.append(float((moved - after).square().sum()))
        size = float((after - before).square().sum())
        np.testing.assert_allclose(losses, np.maximum.accumulate(expected) / size, rtol=1e-4)


def test_a_block_removed_whole_loses_all(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="blocks")
    found = BlockErrorSensitivity().measure(
        subject, tiny_tokens, PRUNERS.create("drop"), [(1,)] * 3
    )
    np.testing.assert_allclose(np.concatenate(found.losses), 1, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"sequences": 0}, {"length": -1}])
@pytest.mark.parametrize("name", ["block_error", "single_kl"])
def test_settings(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        SENSITIVITIES.create(name, **settings)
