from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparsity_search.errors import ModelError
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.io.source import Source, check_gguf, list_stored
from sparsity_search.testing.models import save_tiny_model, tiny_llama
from tests.helpers.checkpoints import (
    add_prediction_layer,
    compute_logits,
    read_tensors,
    rewrite,
    save_family,
)


def load_source(folder: Path, **options: str) -> Source:
    source = load_model(str(folder), **options).source
    assert source is not None
    return source


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_is_left_alone_in_a_plain_model(tmp_path: Path, tied: bool) -> None:
    folder = save_tiny_model(tmp_path / "m", tied=tied)
    source = load_source(folder)
    assert source.left_alone == ()
    assert source.tensors.keys() == read_tensors(folder).keys()
    assert source.dtype == torch.float32


def test_tied_weights_are_one_object_with_all_names() -> None:
    stored = list_stored(tiny_llama(tied=True))
    assert stored["lm_head.weight"] is stored["model.embed_tokens.weight"]
    assert len({id(tensor) for tensor in stored.values()}) == len(stored) - 1
    assert {tensor.device.type for tensor in stored.values()} == {"meta"}


def test_layers_of_prediction_are_left_alone(tmp_path: Path) -> None:
    folder = save_family("glm4_moe", tmp_path / "m", torch.bfloat16)
    before = read_tensors(folder)
    add_prediction_layer(folder)
    added = {name: t for name, t in read_tensors(folder).items() if name not in before}
    source = load_source(folder)
    assert list(source.left_alone) == sorted(added)
    assert source.n_left_alone == sum(tensor.numel() for tensor in added.values())


@pytest.mark.parametrize("name", ["layers.0.self_attn.rotary_emb.inv_freq", "position_ids"])
def test_buffers_that_the_class_computes_do_not_count(tiny: Path, name: str) -> None:
    rewrite(tiny, {**read_tensors(tiny), f"model.{name}": torch.ones(4)})
    assert load_source(tiny).left_alone == ()


def test_a_configuration_with_fewer_blocks_than_the_weights_is_refused(tiny: Path) -> None:
    rewrite(tiny, read_tensors(tiny), num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"makes only 2 .*have model\.layers\.2\."):
        load_model(str(tiny))


def test_names_without_the_prefix_of_the_class_are_the_same(tmp_path: Path, tiny: Path) -> None:
    tensors = {n.removeprefix("model."): t.half() for n, t in read_tensors(tiny).items()}
    rewrite(tiny, tensors)
    loaded = load_model(str(tiny), device="cpu")
    assert loaded.source is not None
    assert loaded.source.left_alone == ()
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "out", base=loaded)
    saved = read_tensors(tmp_path / "out")
    assert all(
        torch.equal(saved[f"model.{n}"], t) for n, t in tensors.items() if n != "lm_head.weight"
    )


def test_files_of_pytorch_are_read(tmp_path: Path, tiny: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in read_tensors(tiny).items()}
    (tiny / "model.safetensors").unlink()
    torch.save({**tensors, "model.extra.weight": torch.ones(2, 3)}, tiny / "pytorch_model.bin")
    loaded = load_model(str(tiny), device="cpu")
    assert loaded.source is not None
    assert (loaded.source.left_alone, loaded.saved_as) == (("model.extra.weight",), torch.bfloat16)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "out", base=loaded)
    saved = read_tensors(tmp_path / "out")
    assert saved.pop("model.extra.weight").tolist() == [[1, 1, 1], [1, 1, 1]]
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("extra", [{}, {"rope_freqs.weight": 4}, {"blk.1.attn_q.bias": 6}])
def test_weights_of_a_gguf_file_are_counted(tmp_path: Path, extra: dict[str, int]) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, size in {"output.weight": 12, **extra}.items():
        writer.add_tensor(name, np.ones(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = nn.Linear(4, 3, bias=False)
    if "blk.1.attn_q.bias" in extra:
        with pytest.raises(ModelError, match=r"6 weights of m\.gguf are no part of Linear"):
            check_gguf(tmp_path / "m.gguf", model)
    else:
        check_gguf(tmp_path / "m.gguf", model)


def test_a_request_for_a_number_type_is_kept(tmp_path: Path, tiny: Path) -> None:
    loaded = load_model(str(tiny), dtype="float16", device="cpu")
    assert loaded.saved_as == torch.float16
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "out", base=loaded)
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "out").values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    again = load_model(str(tmp_path / "out"), dtype="float16", device="cpu")
    assert torch.equal(compute_logits(again.model), compute_logits(loaded.model))
