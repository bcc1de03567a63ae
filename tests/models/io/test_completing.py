"""Checkpoints that come from others: types, bits, left tensors, configuration, side files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import LoadedModel, load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.surgery.materialise import keep_everything, materialise
from sparsity_search.testing.models import save_tiny_model
from tests.helpers.checkpoints import (
    add_prediction_layer,
    compute_logits,
    read_config,
    read_tensors,
    rewrite,
    save_family,
)

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


@pytest.fixture(params=["float32", "bfloat16"])
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The type in which models compute here."""
    dtype: torch.dtype = getattr(torch, request.param)
    monkeypatch.setattr("sparsity_search.models.io.loading.resolve_dtype", lambda *_: dtype)
    return dtype


def save(loaded: LoadedModel, folder: Path) -> dict[str, Tensor]:
    save_checkpoint(loaded.model, loaded.tokenizer, folder, base=loaded)
    return read_tensors(folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_bits_are_those_of_the_source(
    tmp_path: Path, tiny: Path, computed: torch.dtype, stored: torch.dtype
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in read_tensors(tiny).items()}
    tensors["model.norm.weight"] = 1 + torch.rand(32)  # of another type, as some releases have
    rewrite(tiny, tensors, dtype=str(stored).removeprefix("torch."))
    loaded = load_model(str(tiny), device="cpu")
    assert (loaded.model.dtype, loaded.saved_as) == (computed, stored)
    weight = loaded.model.get_parameter(UP)
    weight[:, ::2] = 0
    weight[0, 1] = 0.3
    saved = save(loaded, tmp_path / "out")
    assert read_config(tmp_path / "out") == read_config(tiny)
    assert saved.keys() == tensors.keys()
    tensors[UP][:, ::2] = 0
    tensors[UP][0, 1] = torch.tensor(0.3, dtype=computed)
    for name, tensor in tensors.items():
        assert saved[name].dtype == tensor.dtype, name
        assert torch.equal(saved[name], tensor), name


def test_a_weight_that_rounds_to_zero_is_not_removed(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(tiny, {name: tensor.half() for name, tensor in read_tensors(tiny).items()})
    monkeypatch.setattr(
        "sparsity_search.models.io.loading.resolve_dtype", lambda *_: torch.float32
    )
    loaded = load_model(str(tiny), device="cpu")
    loaded.model.get_parameter(UP)[0, :2] = torch.tensor([1e-9, 0])
    assert save(loaded, tmp_path / "out")[UP][0, :2].tolist() == [2.0**-14, 0]


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_what_is_left_alone_is_copied(tmp_path: Path, shard: str) -> None:
    folder = save_family("glm4_moe", tmp_path / "m", torch.bfloat16)
    add_prediction_layer(folder)
    tensors, out = read_tensors(folder), tmp_path / "out"
    loaded = load_model(str(folder), device="cpu")
    save_checkpoint(loaded.model, loaded.tokenizer, out, base=loaded, max_shard_size=shard)
    saved = read_tensors(out)
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
    assert read_config(out) == read_config(folder)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    files = sorted(file.name for file in out.glob("*.safetensors"))
    numbers = range(1, len(files) + 1)
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in numbers]
    again = load_model(str(out), device="cpu")
    assert again.source is not None
    assert again.source.left_alone == loaded.source.left_alone  # type: ignore[union-attr]
    assert torch.equal(compute_logits(again.model), compute_logits(loaded.model))


def test_what_is_left_alone_does_not_follow_another_shape(tmp_path: Path) -> None:
    folder = save_family("glm4_moe", tmp_path / "m", torch.bfloat16)
    add_prediction_layer(folder)
    loaded = load_model(str(folder), device="cpu")
    subject = PrunableModel(loaded.model, units="sublayers")
    other = materialise(subject, keep_everything(subject))
    with pytest.raises(ModelError, match=r"first model\.layers\.2\.eh_proj.* would not fit"):
        save_checkpoint(other, loaded.tokenizer, tmp_path / "out", base=loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_files_of_processors_are_copied(tmp_path: Path, tiny: Path) -> None:
    files = [
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
        "additional_chat_templates/rag.jinja",
    ]
    for name in files:
        (tiny / name).parent.mkdir(exist_ok=True)
        (tiny / name).write_text(f'{{"of": "{name}"}}')
    save(load_model(str(tiny), device="cpu"), tmp_path / "out")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tiny / name).read_bytes()


def test_a_lost_tensor_is_refused(tmp_path: Path, tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu")
    original = loaded.model.save_pretrained

    def forgetful(folder: Path, **options: str) -> None:
        original(folder, **options)
        tensors = read_tensors(folder)
        del tensors[UP]
        rewrite(folder, tensors)

    loaded.model.save_pretrained = forgetful  # type: ignore[assignment]
    with pytest.raises(ModelError, match=f"lose 1 tensors of LlamaForCausalLM, first {UP}"):
        save(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
