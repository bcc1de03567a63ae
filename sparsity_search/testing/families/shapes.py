"""Fields that the configurations of several families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsity_search.testing.models import VOCABULARY

#: Fields of most configurations of text.
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def text(**fields: Any) -> dict[str, Any]:
    """Return the fields of a model of text."""
    return {**SHAPE, **fields}


ROPE = {"rope_type": "default", "rope_theta": 1e4}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPED = {**ROUTED, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
SHARED_EXPERT = {**MIXTURE, "shared_expert_intermediate_size": 32}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {
    **LINEAR,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
GEMMA: dict[str, Any] = text(head_dim=16, **SLIDING)
GEMMA_4 = {**GEMMA, "global_head_dim": 16, "hidden_size_per_layer_input": 0}
GEMMA_4_EMBEDDINGS = {
    **GEMMA_4,
    "num_hidden_layers": 4,
    "layer_types": 2 * SLIDING["layer_types"],  # type: ignore[operator]
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "patch_size": 4,
}
LLAMA_4 = text(
    head_dim=16,
    intermediate_size_mlp=128,
    num_local_experts=4,
    interleave_moe_layer_step=2,
    num_experts_per_tok=1,
)


def with_vision(
    text: Mapping[str, Any], vision: Mapping[str, Any], **fields: Any
) -> dict[str, Any]:
    """Return the fields of a multimodal model, given those of its two parts."""
    return {"text_config": dict(text), "vision_config": dict(vision), **fields}


QWEN_MULTIMODAL = {"vision_start_token_id": 121, "vision_end_token_id": 122}
QWEN_MULTIMODAL |= {"image_token_id": 123, "video_token_id": 124}
