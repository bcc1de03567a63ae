"""Tiny GGUF files, as llama.cpp writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsity_search.testing.models import tiny_llama, tiny_tokenizer

#: Names of the tensors of a block in GGUF files by those of transformers.
_NAMES = {
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_tiny_gguf(path: Path, *, seed: int = 0) -> None:
    """Write a random Llama with two blocks and its tokenizer; weights are in Q8_0.

    Queries and keys are those of another rotary order, which does not matter for random weights.
    """
    gguf = pytest.importorskip("gguf")
    model, tokenizer = tiny_llama(seed=seed, layers=2), tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(128)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens += ["th", "the", *(f"<spare{i}>" for i in range(126 - len(tokens)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["Ġ" if token == " " else token.replace("\n", "Ċ") for token in tokens])
    writer.add_token_types([3 if token[0] == "<" and token[1:] else 1 for token in tokens])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        if data.ndim == 1:
            writer.add_tensor(_rename(name), data)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(_rename(name), gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rename(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    outer["lm_head.weight"] = "output"
    if name in outer:
        return f"{outer[name]}.weight"
    _, _, block, inner = name.removesuffix(".weight").split(".", 3)
    return f"blk.{block}.{_NAMES[inner]}.weight"
