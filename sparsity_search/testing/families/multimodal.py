"""Multimodal models as released, with their vision towers."""

from __future__ import annotations

from sparsity_search.testing.families.family import Family
from sparsity_search.testing.families.shapes import (
    DELTA,
    GEMMA,
    GEMMA_4_EMBEDDINGS,
    LLAMA_4,
    QWEN_MULTIMODAL,
    QWEN_VISION,
    ROPE,
    SHARED_EXPERT,
    VISION,
    text,
    with_vision,
)

#: Multimodal models as released, with their vision towers.
MULTIMODAL: dict[str, Family] = {
    "gemma3_multimodal": Family(
        "Gemma 3, multimodal",
        "Gemma3ForConditionalGeneration",
        with_vision(GEMMA, VISION, mm_tokens_per_image=4),
    ),
    "gemma3_equal_depths": Family(
        "Gemma 3, multimodal, towers of equal depth",
        "Gemma3ForConditionalGeneration",
        with_vision(GEMMA, {**VISION, "num_hidden_layers": 2}, mm_tokens_per_image=4),
    ),
    "gemma4_multimodal": Family(
        "Gemma 4, multimodal",
        "Gemma4ForConditionalGeneration",
        with_vision(
            {**GEMMA_4_EMBEDDINGS, "pad_token_id": 0},
            {**VISION, "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 64},
            audio_config=None,
        ),
    ),
    "mistral3": Family(
        "Mistral Small 3, multimodal",
        "Mistral3ForConditionalGeneration",
        with_vision(
            {"model_type": "mistral", **text(head_dim=16)},
            {"model_type": "pixtral", **VISION, "head_dim": 8},
            spatial_merge_size=1,
        ),
    ),
    "qwen3_vl": Family(
        "Qwen3-VL",
        "Qwen3VLForConditionalGeneration",
        with_vision(
            text(head_dim=16, rope_parameters={**ROPE, "mrope_section": [4, 2, 2]}),
            {**QWEN_VISION, "deepstack_visual_indexes": [0]},
            **QWEN_MULTIMODAL,
        ),
    ),
    "qwen3_5": Family(
        "Qwen3.5, multimodal",
        "Qwen3_5ForConditionalGeneration",
        with_vision(text(head_dim=16, **DELTA), QWEN_VISION, **QWEN_MULTIMODAL),
    ),
    "qwen3_5_moe": Family(
        "Qwen3.5-MoE, multimodal",
        "Qwen3_5MoeForConditionalGeneration",
        with_vision(text(head_dim=16, **SHARED_EXPERT, **DELTA), QWEN_VISION, **QWEN_MULTIMODAL),
    ),
    "llama4": Family(
        "Llama 4, multimodal",
        "Llama4ForConditionalGeneration",
        with_vision(
            LLAMA_4,
            {
                **VISION,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        ),
    ),
    "internvl": Family(
        "InternVL 3",
        "InternVLForConditionalGeneration",
        with_vision(
            {"model_type": "qwen2", **text()},
            {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
            image_token_id=123,
        ),
    ),
}
