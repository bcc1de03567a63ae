"""A checkpoint that is not as it was saved is told by the name of a tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsity_search.errors import ModelError
from sparsity_search.models.io.checksums import check_checkpoint, find_nan, write_checksums
from sparsity_search.models.io.offload import Offload
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.models import save_tiny_model, tiny_llama, tiny_tokenizer
from tests.helpers.json_files import change_json

NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "m")


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def set_nan(tensors: Tensors) -> None:
    tensors[UP][3, 5] = float("nan")


def rename(tensors: Tensors) -> None:
    tensors["model.final.weight"] = tensors.pop(NORM)


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "NaN": (set_nan, f"{UP} differs"),
    "negated head": (lambda t: t["lm_head.weight"].neg_(), "lm_head.weight differs"),
    "changed norm": (lambda t: t[NORM][0].mul_(1.01), f"{NORM} differs"),
    "renamed": (rename, f"{NORM} is missing, model.final.weight is new"),
    "number type": (
        lambda t: t.update({NORM: t[NORM].half()}),
        rf"{NORM} differs \(dtype float32 → float16\)",
    ),
    "shape": (
        lambda t: t.update({NORM: t[NORM][:-1].clone()}),
        r"differs \(shape \[32\] → \[31\]\)",
    ),
    "all": (lambda t: [each.mul_(2) for each in t.values()], "differs, .*, and 27 more"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_differs_is_named(folder: Path, name: str) -> None:
    assert check_checkpoint(folder) == len(tiny_llama().state_dict()) == 30
    change, words = DAMAGES[name]
    rewrite(folder, change)
    with pytest.raises(ModelError, match=f"is not as it was saved: .*{words}") as caught:
        check_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_the_checksum_is_that_of_the_bytes(folder: Path) -> None:
    stored = json.loads((folder / "checksums.json").read_text())["tensors"]
    weight = tiny_llama().state_dict()[UP]
    digest = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
    assert stored[UP] == {"dtype": "float32", "shape": [64, 32], "sha256": digest}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_do_not_count(tmp_path: Path, dtype: torch.dtype) -> None:
    model, stored = tiny_llama(tied=True, dtype=dtype), []
    for name, size in (("whole", "1GB"), ("parts", "20KB")):
        save_checkpoint(model, tiny_tokenizer(), tmp_path / name, max_shard_size=size)
        stored.append(json.loads((tmp_path / name / "checksums.json").read_text()))
        assert check_checkpoint(tmp_path / name) == 29
    assert stored[0] == stored[1]
    (tmp_path / "parts" / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        check_checkpoint(tmp_path / "parts")


def test_the_configuration_counts_but_not_who_saved_it(folder: Path) -> None:
    change_json(folder / "config.json", transformers_version="4.0", _name_or_path="elsewhere")
    assert check_checkpoint(folder) == 30
    change_json(folder / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(ModelError, match=r"config\.json differs"):
        check_checkpoint(folder)


def test_without_checksums_nothing_is_compared(folder: Path) -> None:
    (folder / "checksums.json").unlink()
    rewrite(folder, set_nan)
    assert check_checkpoint(folder) is None


def test_damaged_files_are_one_line(folder: Path) -> None:
    whole = (folder / "checksums.json").read_text()
    (folder / "checksums.json").write_text(whole.replace("32", "33", 1))
    with pytest.raises(ModelError, match=r"checksums\.json is damaged"):
        check_checkpoint(folder)
    (folder / "checksums.json").write_text(whole)
    (folder / "model.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        check_checkpoint(folder)


@pytest.mark.parametrize("offloaded", [False, True])
def test_nan_is_found_anywhere(offloaded: bool) -> None:
    model = tiny_llama(layers=2)
    assert find_nan(model) is None
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[-1, -1] = float("nan")
    if offloaded:
        Offload(model, torch.device("cpu"))
    assert find_nan(model) == "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("content", ["", "[]", "5", "\x00"])
def test_a_configuration_that_cannot_be_read(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        check_checkpoint(folder)


def test_a_configuration_may_hold_infinity(folder: Path) -> None:
    """Some families do, and so do the configurations that they are saved with."""
    change_json(folder / "config.json", limit=float("inf"))
    write_checksums(folder)
    assert check_checkpoint(folder) == 30
    change_json(folder / "config.json", limit=1.0)
    with pytest.raises(ModelError, match=r"config\.json differs"):
        check_checkpoint(folder)
