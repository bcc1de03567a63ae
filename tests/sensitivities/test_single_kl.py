from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.registry import PRUNERS
from sparsity_search.sensitivities.single_kl import SingleKLSensitivity
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import make_family
from tests.helpers.sensitivity_oracles import (
    log_probabilities,
    mean_divergence,
    pruned_weights,
    written,
)


@pytest.mark.parametrize(
    ("family", "units", "name", "exclude"),
    [
        ("llama", "weights", "wanda", r"layers\.1\.|q_proj"),
        ("llama", "width", "flap", None),
        ("llama", "blocks", "drop", None),
        ("gemma3", "weights", "magnitude", r"layers\.[01]\."),  # capped logits
        ("bamba", "sublayers", "drop", None),  # tuples of two
        ("gemma4_per_layer", "sublayers", "drop", None),  # keys of earlier blocks
    ],
)
def test_is_the_divergence_of_the_whole_model(
    family: str, units: str, name: str, exclude: str | None, tiny_tokens: Tensor
) -> None:
    subject, pruner = PrunableModel(make_family(family), exclude, units), PRUNERS.create(name)
    counts = build_count_tables(subject.layout, (0.4, 0.8))
    found = SingleKLSensitivity(sequences=9, length=13).measure(
        subject, tiny_tokens, pruner, counts, seed=1
    )
    text = tiny_tokens[:9, :13]
    dense = log_probabilities(subject.model, text)
    for (unit, levels), losses in zip(
        pruned_weights(subject, tiny_tokens, pruner, counts, seed=1), found.losses, strict=True
    ):
        expected = []
        for level in levels:
            with written(subject, unit.name, level) as model:
                expected.append(mean_divergence(dense, log_probabilities(model, text)))
        np.testing.assert_allclose(losses, np.maximum.accumulate(expected), rtol=2e-4, atol=1e-6)


def test_blocks_before_the_unit_do_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor
) -> None:
    subject, ran = PrunableModel(tiny_llama(), units="blocks"), []
    run = BlockRunner.run

    def spy(self: BlockRunner, block: int, hidden: list[Tensor]) -> list[Tensor]:
        ran.append(block)
        return run(self, block, hidden)

    monkeypatch.setattr(BlockRunner, "run", spy)
    SingleKLSensitivity().measure(subject, tiny_tokens, PRUNERS.create("drop"), [(1,)] * 3)
    assert ran == [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2]


def test_pruners_that_merge_are_refused(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="blocks")
    with pytest.raises(ConfigError, match="use drop instead"):
        SingleKLSensitivity().measure(subject, tiny_tokens, PRUNERS.create("laco"), [(1,)] * 3)
