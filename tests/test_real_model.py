"""The main job on SmolLM2-135M: exact, and the same twice. Minutes; `make real-model` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS, PRUNERS
from sparsity_search.workflow.search import search

pytestmark = pytest.mark.real_model


@pytest.fixture(autouse=True)
def _all_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def configuration() -> RunConfig:
    return load_config(
        None,
        {
            "model.name": "smollm2",
            "budget.sparsity": 0.6,
            "study.rounds": 2,
            "data.calibration_length": 128,
            "data.calibration_sequences": 4,
            "data.search_length": 128,
            "data.search_sequences": 4,
            "data.final_length": 128,
            "data.final_sequences": 2,
            "ladder.rungs": [{"tokens": 128, "survivors": 2}, {"tokens": 512, "survivors": 1}],
        },
    )


def test_a_search_twice_gives_the_same_profile_byte_for_byte(tmp_path: Path) -> None:
    for name in ("first", "second"):
        search(configuration(), tmp_path / name)
    first, second = ((tmp_path / d / "profile.json").read_bytes() for d in ("first", "second"))
    assert first == second
    stored = json.loads(first)
    assert stored["removed"] == round(0.6 * stored["weights"]) == 63700992


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.7, 0.95])
def test_zeros_in_the_reloaded_checkpoint_are_the_budget(tmp_path: Path, sparsity: float) -> None:
    loaded = load_model("smollm2")
    subject = PrunableModel(loaded.model)
    assert subject.layout.zeros.sum() == 33483
    profile = Budget(sparsity).uniform(subject.layout)
    tokens = torch.randint(49152, (1, 64), generator=torch.Generator().manual_seed(0))
    prune_sequentially(subject, profile, PRUNERS.create("wanda"), tokens)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "pruned")
    reloaded = load_model(str(tmp_path / "pruned"))
    found = PrunableModel(reloaded.model).zeros()
    assert found.removed == profile.removed
    assert found.n_removed == round(sparsity * 106168320)
    with torch.inference_mode():
        logits = [m.model(input_ids=tokens).logits for m in (loaded, reloaded)]
    assert torch.equal(*logits)


def test_the_dense_model_does_not_diverge_from_itself() -> None:
    """In bfloat16 with 49,152 words, where Σ p strays from 1 by about 1e-5."""
    model = load_model("smollm2").model
    tokens = torch.randint(49152, (1, 256), generator=torch.Generator().manual_seed(0))
    proxy = EVALUATORS.create("kl_divergence").bind(model, tokens)
    assert proxy.score(model, [0]).value < 1e-5
