"""What is measured has one identity: whatever changes a score changes it, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.normalizers import Lowercase
from transformers import ByT5Tokenizer

from sparsity_search.models.io.identity import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    compute_config_digest,
    compute_tokenizer_digest,
    compute_weights_digest,
    identify,
)
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.models import tiny_llama, tiny_tokenizer
from tests.helpers.families import ALL_FAMILIES


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mistral"
    save_checkpoint(ALL_FAMILIES["mistral"](), tiny_tokenizer(), folder)
    return folder


def change(folder: Path, name: str, **fields: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def differing(folder: Path, other: Path) -> set[str]:
    """Return the keys in which two models differ, as they are loaded."""
    first, second = (load_model(str(each), dtype="float32").identity for each in (folder, other))
    return {key for key in {**first, **second} if first.get(key) != second.get(key)}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rms_norm_eps": 1e-3},
        {"sliding_window": 8},
        {"sliding_window": None},
    ],
)
def test_another_configuration_of_the_same_weights(
    mistral: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    other = shutil.copytree(mistral, tmp_path / "other")
    change(other, "config.json", **fields)
    assert differing(mistral, other) == {CONFIG}
    tokens = torch.arange(40).view(1, 40)
    logits = [load_model(str(m), dtype="float32").model(tokens).logits for m in (mistral, other)]
    assert not torch.equal(*logits)


def test_place_version_and_generation_settings_do_not_count(mistral: Path, tmp_path: Path) -> None:
    other = shutil.copytree(mistral, tmp_path / "elsewhere")
    change(other, "config.json", transformers_version="4.0", temperature=0.3, max_length=7)
    change(other, "generation_config.json", temperature=0.3, do_sample=True)
    change(other, "tokenizer_config.json", chat_template="{{ messages }}", name_or_path="x")
    assert not differing(mistral, other)


def test_a_saved_model_keeps_its_identity(mistral: Path, tmp_path: Path) -> None:
    loaded = load_model(str(mistral), dtype="float32")
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "again")
    assert not differing(mistral, tmp_path / "again")
    assert loaded.identity == identify(ALL_FAMILIES["mistral"](), tiny_tokenizer())


def test_the_implementation_of_attention_counts() -> None:
    model = tiny_llama()
    before = compute_config_digest(model.config)
    model.set_attn_implementation("eager")
    assert compute_config_digest(model.config) != before


def lowercase(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = Lowercase()


def add_token(tokenizer: Any) -> None:
    tokenizer.add_tokens(["the"])


def start_otherwise(tokenizer: Any) -> None:
    tokenizer.bos_token = "<eos>"


@pytest.mark.parametrize("alter", [lowercase, add_token, start_otherwise])
def test_another_tokenizer(mistral: Path, tmp_path: Path, alter: Callable[[Any], None]) -> None:
    tokenizer, other = tiny_tokenizer(), shutil.copytree(mistral, tmp_path / "other")
    alter(tokenizer)
    tokenizer.save_pretrained(other)
    assert differing(mistral, other) == {TOKENIZER}


def test_a_tokenizer_in_python_and_none(tmp_path: Path) -> None:
    found = [ByT5Tokenizer(), ByT5Tokenizer(extra_ids=3), ByT5Tokenizer(eos_token="<x>"), None]
    assert len({compute_tokenizer_digest(each) for each in found}) == len(found)
    found[0].save_pretrained(tmp_path)  # type: ignore[union-attr]
    again = ByT5Tokenizer.from_pretrained(tmp_path)
    assert compute_tokenizer_digest(again) == compute_tokenizer_digest(ByT5Tokenizer())


def test_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    before = identify(model, tokenizer)
    monkeypatch.setattr(transformers, "__version__", "99.0")
    assert identify(model, tokenizer) == {**before, "transformers": "99.0"}
    assert {"torch", "sparsity-search"} < before.keys()


def test_the_weights_count_by_themselves() -> None:
    model = tiny_llama()
    before = identify(model, None)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[-1, -1] += 1
    after = identify(model, None)
    assert {key for key in before if before[key] != after[key]} == {WEIGHTS}
    assert after[WEIGHTS] == compute_weights_digest(model)
