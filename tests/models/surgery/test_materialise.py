from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.surgery.materialise import (
    keep_everything,
    materialise,
    plan,
    predict_padding,
)
from sparsity_search.profiles.profile import from_counts
from sparsity_search.testing.models import VOCABULARY, tiny_llama
from tests.helpers.families import ALL_FAMILIES, FAMILIES

#: Structures removed from each unit: uneven between blocks.
REMOVED = {
    "width": [0, 30, 1, 20, 1, 41],
    "heads": [1, 30, 0, 20, 1, 41],
    "sublayers": [1, 0, 1, 1, 0, 1],
    "blocks": [0, 1, 0],
}


def pruned(kind: str, model: torch.nn.Module | None = None) -> PrunableModel:
    """A tiny model without some structures, here and there."""
    subject = PrunableModel(model or tiny_llama(), units=kind)
    for unit, count in zip(subject.layout, REMOVED[kind], strict=True):
        view = subject.views[unit.name]
        weight = view.read()
        generator = torch.Generator().manual_seed(unit.block)
        gone = torch.randperm(unit.count, generator=generator)[:count]
        view.structures.bodies(weight)[:, gone] = 0
        view.write(weight)
    return subject


@torch.inference_mode()
def logits(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens).logits


@pytest.mark.parametrize("kind", REMOVED)
@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_logits_are_those_of_the_pruned_model(
    kind: str, multiple: int, tiny_tokens: Tensor
) -> None:
    subject = pruned(kind)
    made = materialise(subject, plan(subject, multiple))
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def test_widths() -> None:
    subject = pruned("width")
    shape = plan(subject, 16)
    config = materialise(subject, shape).config
    # the fullest feed-forward keeps 44 of 64 channels, the fullest attention both groups
    assert (config.intermediate_size, config.num_key_value_heads) == (48, 2)
    assert (config.num_attention_heads, config.head_dim, config.num_hidden_layers) == (4, 8, 3)
    # blocks 1 and 2 keep one empty group of two; channels 34, 44 and 23 are padded to 48
    group, channel = 32 * (2 * 16 + 2 * 8), 3 * 32
    assert shape.padding == 2 * group + (14 + 4 + 25) * channel


@pytest.mark.parametrize("kind", REMOVED)
@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_padding_is_known_before(kind: str, multiple: int) -> None:
    dense = PrunableModel(tiny_llama(), units=kind)
    profile = from_counts(dense.layout, REMOVED[kind])
    assert predict_padding(dense, profile, multiple) == plan(pruned(kind), multiple).padding


def test_heads_shrink_with_their_groups() -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    for unit in subject.layout:
        if unit.role == "attention":
            view = subject.views[unit.name]
            weight = view.read()
            view.structures.bodies(weight)[:, unit.block % 2] = 0
            view.write(weight)
    shape = plan(subject)
    config = materialise(subject, shape).config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 2, 8)
    assert shape.padding == 0


def test_query_heads_leave_keys_and_values(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="heads")
    for unit in subject.layout:
        if unit.role == "attention":
            view = subject.views[unit.name]
            weight = view.read()
            view.structures.bodies(weight)[:, unit.block % 2] = 0
            view.write(weight)
    made = materialise(subject, plan(subject))
    config = made.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (2, 2, 8)
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def test_blocks_disappear(tiny_tokens: Tensor) -> None:
    subject = pruned("blocks")
    made = materialise(subject, plan(subject))
    assert len(made.model.layers) == 2
    subject = pruned("sublayers")  # only block 1 has lost both
    shape = plan(subject)
    assert shape.blocks == (0, 2)
    assert shape.padding == sum(subject.layout[i].size for i in (0, 5))


def test_one_entry_a_block_in_the_configuration() -> None:
    subject = pruned("blocks", FAMILIES["gemma3"]())
    assert subject.model.config.layer_types[1] == "full_attention"
    made = materialise(subject, plan(subject))
    assert made.config.layer_types == ["sliding_attention", "sliding_attention"]


@pytest.mark.parametrize("kind", ["blocks", "sublayers"])
def test_gemma(kind: str, tiny_tokens: Tensor) -> None:
    subject = pruned(kind, FAMILIES["gemma3"]())
    made = materialise(subject, plan(subject))
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "falcon", "olmo2", "phi3"])
def test_blocks_of_other_families(family: str, tiny_tokens: Tensor) -> None:
    subject = pruned("blocks", unbiased(ALL_FAMILIES[family]()))
    shape = plan(subject)
    assert shape.blocks == (0, 2)
    made = materialise(subject, shape)
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def unbiased(model: torch.nn.Module) -> torch.nn.Module:
    """Without the biases that are left when all else of a block is removed."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "norm" not in name:
            parameter.zero_()
    return model


@pytest.mark.parametrize("kind", ["blocks", "sublayers"])
def test_an_empty_block_with_a_norm_behind_stays(kind: str, tiny_tokens: Tensor) -> None:
    subject = pruned(kind, unbiased(ALL_FAMILIES["opt_post_norm"]()))
    shape = plan(subject)
    assert shape.blocks == (0, 1, 2)
    made = materialise(subject, shape)
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def test_an_empty_attention_beside_a_mixer_stays() -> None:
    subject = PrunableModel(ALL_FAMILIES["falcon_h1"](), units="sublayers")
    for unit in subject.units_of(1):
        subject.views[unit.name].write(subject.views[unit.name].read() * 0)
    assert plan(subject).blocks == (0, 1, 2)


@pytest.mark.parametrize(
    ("family", "field"), [("gpt2", "n_inner"), ("opt", "ffn_dim"), ("falcon", "ffn_hidden_size")]
)
def test_channels_of_other_families(family: str, field: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(ALL_FAMILIES[family](), units="width")
    for unit in subject.layout:
        if unit.role == "feed_forward":
            view = subject.views[unit.name]
            weight = view.read()
            view.structures.bodies(weight)[:, 5 : 30 + unit.block] = 0
            view.write(weight)
    made = materialise(subject, plan(subject))
    before = getattr(subject.model.config, field) or 128
    assert getattr(made.config, field) == before - 25
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


FIXED = {
    "attention": ["gptj", "opt", "stablelm"],
    "feed_forward": ["bloom", "mpt", "jamba", "qwen3_next"],
}


@pytest.mark.parametrize(("family", "role"), [(f, role) for role in FIXED for f in FIXED[role]])
def test_widths_that_the_architecture_fixes(family: str, role: str) -> None:
    subject = PrunableModel(ALL_FAMILIES[family](), units="heads")
    for unit in subject.layout:
        if unit.role == role:
            view = subject.views[unit.name]
            weight = view.read()
            view.structures.bodies(weight)[:, 0] = 0
            view.write(weight)
    with pytest.raises(ModelError, match="ForCausalLM does not support this shape"):
        materialise(subject, plan(subject))


def biased(kind: str = "width") -> PrunableModel:
    subject = pruned(kind)
    for unit in subject.layout:
        view = subject.views[unit.name]
        weight = view.read()
        weight[:, -1] = torch.linspace(-1, 1, len(weight))
        view.write(weight)
    return subject


@pytest.mark.parametrize("whole", [True, False])
def test_biases_that_pruning_added(whole: bool, tiny_tokens: Tensor) -> None:
    subject = biased()
    made = materialise(subject, keep_everything(subject) if whole else plan(subject))
    assert made.config.attention_bias
    assert made.config.mlp_bias
    assert (made.model.layers[1].self_attn.q_proj.bias == 0).all()
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def test_an_empty_block_with_a_bias_stays(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    for unit in subject.units_of(1):
        view = subject.views[unit.name]
        weight = view.read() * 0
        weight[:, -1] = 0.5
        view.write(weight)
    shape = plan(subject)
    assert shape.blocks == (0, 1, 2)
    made = materialise(subject, shape)
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def test_a_bias_without_a_place(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(FAMILIES["gemma3"](), units="width")
    (unit,) = [u for u in subject.units_of(1) if u.role == "feed_forward"]
    view = subject.views[unit.name]
    weight = view.read()
    weight[:, -1] = 1.0
    view.write(weight)
    with pytest.raises(ModelError, match=r"does not support this shape: .*down_proj\.bias"):
        materialise(subject, keep_everything(subject))


def test_widths_of_their_own(tiny_tokens: Tensor) -> None:
    config = Gemma3nTextConfig(
        vocab_size=VOCABULARY, vocab_size_per_layer_input=VOCABULARY, hidden_size=32,
        hidden_size_per_layer_input=8, intermediate_size=[64, 64, 64], num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, laurel_rank=4,
        num_kv_shared_layers=0, activation_sparsity_pattern=[0.0] * 3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3nForCausalLM(config).eval().requires_grad_(False)
    subject = PrunableModel(model, units="width")
    for unit in subject.layout:
        if unit.role == "feed_forward":
            view = subject.views[unit.name]
            weight = view.read()
            view.structures.bodies(weight)[:, : 10 * unit.block] = 0
            view.write(weight)
    shape = plan(subject)
    assert shape.per_block
    assert shape.padding == 0
    made = materialise(subject, shape)
    assert made.config.get_text_config().intermediate_size == [64, 54, 44]
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


@pytest.mark.parametrize("kind", ["width", "blocks"])
def test_plain_transformers_loads_it(kind: str, tiny_tokens: Tensor, tmp_path: Path) -> None:
    subject = biased() if kind == "width" else pruned(kind)
    made = materialise(subject, plan(subject))
    made.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded.eval(), tiny_tokens), logits(made, tiny_tokens))


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding(tied: bool, tiny_tokens: Tensor) -> None:
    subject = pruned("width", tiny_llama(tied=tied))
    made = materialise(subject, plan(subject))
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    assert_close(logits(made, tiny_tokens), logits(subject.model, tiny_tokens))


def test_the_pruned_model_is_not_modified(tiny_tokens: Tensor) -> None:
    subject = pruned("width")
    before = logits(subject.model, tiny_tokens)
    made = materialise(subject, plan(subject))
    for parameter in made.parameters():
        parameter.zero_()
    assert torch.equal(logits(subject.model, tiny_tokens), before)
    assert subject.model.config.intermediate_size == 64


def test_what_cannot_be_materialised() -> None:
    with pytest.raises(ModelError, match="not single weights"):
        plan(PrunableModel(tiny_llama()))
    subject = PrunableModel(tiny_llama(), units="blocks")
    for unit in subject.layout:
        view = subject.views[unit.name]
        assert isinstance(view, StructuredView)
        view.write(view.read() * 0)
    with pytest.raises(ModelError, match="every block is removed"):
        plan(subject)
