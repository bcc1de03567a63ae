from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from sparsity_search.errors import ModelError
from sparsity_search.models.io.classes import find_class
from sparsity_search.models.io.loading import load_model
from tests.helpers.checkpoints import read_tensors, rewrite, save_family


@pytest.mark.parametrize("family", ["qwen3_5", "llama4", "mistral3", "gemma3_multimodal"])
def test_composite_models_have_all_their_parts(tmp_path: Path, family: str) -> None:
    folder = save_family(family, tmp_path / "m")
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    assert [type(loaded.model).__name__] == loaded.model.config.architectures
    assert loaded.source is not None
    assert loaded.source.left_alone == ()
    stored = sum(tensor.numel() for tensor in read_tensors(folder).values())
    assert loaded.model.num_parameters() == stored


def test_others_are_loaded_as_language_models(tmp_path: Path) -> None:
    folder = save_family("qwen3_5_text", tmp_path / "m")
    assert find_class(AutoConfig.from_pretrained(folder)) is AutoModelForCausalLM


def test_a_class_that_transformers_does_not_have(tmp_path: Path) -> None:
    folder = save_family("mistral3", tmp_path / "m")
    rewrite(folder, read_tensors(folder), architectures=["Mistral9ForConditionalGeneration"])
    with pytest.raises(ModelError, match=r"mistral3 \(Mistral9.*install a version") as caught:
        load_model(str(folder))
    assert transformers.__version__ in str(caught.value)
    assert len(str(caught.value)) < 250


def test_composite_models_can_be_offloaded(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    folder = save_family("mistral3", tmp_path / "m")
    tokens = torch.arange(3, 27)[None]
    plain, offloaded = (
        load_model(str(folder), dtype="float32", device="cpu", offload=offload).model
        for offload in (False, True)
    )
    assert torch.equal(offloaded(input_ids=tokens).logits, plain(input_ids=tokens).logits)
