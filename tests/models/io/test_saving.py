from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.models import tiny_llama, tiny_tokenizer

TEXT = "Hello, tiny world!\n\n1 + 1 = 2"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reloading_gives_equal_logits(tmp_path: Path, tied: bool, dtype: str) -> None:
    model = tiny_llama(tied=tied, dtype=getattr(torch, dtype))
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), dtype=dtype, device="cpu")
    tokens = torch.arange(100).reshape(2, 50)
    assert torch.equal(loaded.model(tokens).logits, model(tokens).logits)
    assert loaded.tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids


def test_the_folder_holds_safetensors_and_the_generation_settings(tmp_path: Path) -> None:
    model = tiny_llama()
    model.generation_config.max_new_tokens = 7
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "m")
    names = {file.name for file in (tmp_path / "m").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    reloaded = load_model(str(tmp_path / "m"), dtype="float32").model
    assert reloaded.generation_config.max_new_tokens == 7


def test_a_failed_save_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    save_checkpoint(tiny_llama(), tiny_tokenizer(), folder)
    before = (folder / "model.safetensors").read_bytes()

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tiny_llama(seed=1), Broken(), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_checkpoint(tiny_llama(), tiny_tokenizer(), folder)
    (folder / "stale.txt").touch()
    save_checkpoint(tiny_llama(layers=1), tiny_tokenizer(), folder)
    assert not (folder / "stale.txt").exists()
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.real_model
def test_the_gguf_model_saves_as_a_dense_one(tmp_path: Path) -> None:
    loaded = load_model("smollm2", dtype="float32", device="cpu")
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "m")
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    again = load_model(str(tmp_path / "m"), dtype="float32", device="cpu")
    tokens = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    assert tokens.tolist() == [again.tokenizer(TEXT).input_ids]
    assert torch.equal(loaded.model(tokens).logits, again.model(tokens).logits)
    assert again.digest == loaded.digest
    assert again.model.generation_config == loaded.model.generation_config


@pytest.mark.parametrize("tied", [False, True])
def test_shards(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tied=tied)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "m", max_shard_size="40KB")
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2
    names = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in names) is not tied
    loaded = load_model(str(tmp_path / "m"), dtype="float32", device="cpu")
    tokens = torch.arange(100).reshape(2, 50)
    assert torch.equal(loaded.model(tokens).logits, model(tokens).logits)
    weights = [loaded.model.lm_head.weight, loaded.model.model.embed_tokens.weight]
    assert (weights[0] is weights[1]) is tied


def test_the_card_is_the_readme(tmp_path: Path) -> None:
    save_checkpoint(tiny_llama(), tiny_tokenizer(), tmp_path / "m", card="hello\n")
    assert (tmp_path / "m" / "README.md").read_text() == "hello\n"
    save_checkpoint(tiny_llama(), tiny_tokenizer(), tmp_path / "m")
    assert not (tmp_path / "m" / "README.md").exists()
