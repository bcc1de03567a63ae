"""Tiny random models of many families: three blocks, vocabulary 128, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sparsity_search.testing.families import FAMILIES as RECENT
from sparsity_search.testing.models import VOCABULARY, tiny_llama

#: Fields of most configurations.
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
#: The same, as older configurations call them.
OLD_SHAPE = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
#: Of experts.
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}


def _tiny(family: str, shape: dict[str, Any] = SHAPE, **fields: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a family's model; its classes begin with ``family``."""

    def make() -> nn.Module:
        config: Any = getattr(transformers, f"{family.removesuffix('Text')}Config", None)
        config = getattr(transformers, f"{family}Config", config)
        ends = ("ForCausalLM", "LMHeadModel")
        names = [family.removesuffix("Text") + end for end in ends]
        model: Any = next(getattr(transformers, n) for n in names if hasattr(transformers, n))
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values = {"vocab_size": VOCABULARY, **special, **shape, **fields}
            made: nn.Module = model(config(**values))
            for name, parameter in made.named_parameters():
                if name.endswith("bias"):  # most families begin with none that could be seen
                    nn.init.normal_(parameter, std=0.1)
        return made.eval().requires_grad_(False)

    return make


#: Families whose blocks have nothing but linear layers.
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": tiny_llama,
    # masks and rotary embeddings differ between blocks; the logits are capped
    "gemma3": _tiny(
        "Gemma3Text",
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=2.0,
    ),
    "opt": _tiny("OPT", ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neox": _tiny("GPTNeoX"),
    "granite": _tiny("Granite", logits_scaling=4.0),
    "cohere": _tiny("Cohere", logit_scale=0.25),
    # weights stored transposed, fused projections
    "gpt2": _tiny("GPT2", OLD_SHAPE),
}

#: More of them, for the suite of all families.
MORE: dict[str, Callable[[], nn.Module]] = {
    "llama_tied": lambda: tiny_llama(tied=True),
    "mistral": _tiny("Mistral", sliding_window=4),
    "qwen2": _tiny("Qwen2"),
    "qwen3": _tiny("Qwen3", head_dim=8),
    "olmo2": _tiny("Olmo2"),
    "stablelm": _tiny("StableLm", use_qkv_bias=True),
    "phi": _tiny("Phi"),
    "phi3": _tiny("Phi3"),
    # its embedding is projected, and norms come behind the residual sums
    "opt_post_norm": _tiny("OPT", ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False),
    "bloom": _tiny("Bloom", {**SHAPE, **OLD_SHAPE}),
    "falcon": _tiny("Falcon", new_decoder_architecture=False),
    "falcon_new": _tiny("Falcon", num_kv_heads=2, new_decoder_architecture=True),
    "mpt": _tiny("Mpt", {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 256}),
    "gptj": _tiny("GPTJ", {**OLD_SHAPE, "rotary_dim": 4}),
    "codegen": _tiny("CodeGen", {**OLD_SHAPE, "rotary_dim": 4}),
    "mamba": _tiny("Mamba", state_size=8),
    "mamba2": _tiny("Mamba2", num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8),
    "falcon_h1": _tiny(
        "FalconH1",
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=8,
        lm_head_multiplier=0.25,
    ),
}

#: Families whose blocks get or return more than hidden states, by name in `testing.families`.
UNUSUAL = (
    "gemma3n",  # four streams, per-layer embeddings, keys and values shared through a mapping
    "gemma4_per_layer",  # per-layer embeddings, keys and values shared through a mapping
    "zamba2",  # the embedding by position
    "bamba",  # tuples of two
    "deepseek_v4",  # two streams, token ids
    "llama4_text",  # the library knows no base model
)

#: Families with mixtures of experts.
MIXTURES: dict[str, Callable[[], nn.Module]] = {
    "mixtral": _tiny("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _tiny("Qwen3Moe", head_dim=8, moe_intermediate_size=16, **MIXTURE),
    # transposed experts, gate and up interleaved, biases
    "gpt_oss": _tiny(
        "GptOss",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    # a mixer, an attention, a mixer; the attention has the experts
    "jamba": _tiny(
        "Jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        use_mamba_kernels=False,  # the oldest release asks for them
        **MIXTURE,
    ),
    "qwen3_next": _tiny(
        "Qwen3Next",
        head_dim=8,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        **MIXTURE,
    ),
}

ALL_FAMILIES = {**FAMILIES, **MORE, **MIXTURES}


def make_family(name: str) -> nn.Module:
    """Return a family's model, of those here or in `testing.families`.

    If this release of transformers does not have it, the test is skipped.
    """
    if name in ALL_FAMILIES:
        return ALL_FAMILIES[name]()
    if not RECENT[name].is_available():
        pytest.skip(f"this release of transformers has no {RECENT[name].architecture}")
    return RECENT[name].make()
