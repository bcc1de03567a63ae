"""Tiny random models of families whose blocks and heads differ from Llama's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from sparsity_search.testing.models import VOCABULARY, tiny_llama


def _tiny(
    model: type[PreTrainedModel], config: type[PreTrainedConfig], **fields: object
) -> nn.Module:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(config(**shape, **fields)).eval().requires_grad_(False)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": tiny_llama,
    # masks and rotary embeddings differ between blocks; the logits are capped
    "gemma3": lambda: _tiny(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=2.0,
    ),
    "opt": lambda: _tiny(OPTForCausalLM, OPTConfig, ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neox": lambda: _tiny(GPTNeoXForCausalLM, GPTNeoXConfig),
    "granite": lambda: _tiny(GraniteForCausalLM, GraniteConfig, logits_scaling=4.0),
    "cohere": lambda: _tiny(CohereForCausalLM, CohereConfig, logit_scale=0.25),
}
