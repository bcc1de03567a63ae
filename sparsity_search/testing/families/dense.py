"""Dense models of text."""

from __future__ import annotations

from sparsity_search.testing.families.family import Family
from sparsity_search.testing.families.shapes import (
    GEMMA,
    GEMMA_4,
    GEMMA_4_EMBEDDINGS,
    ROPE,
    SLIDING,
    text,
)

#: Dense models of text.
DENSE: dict[str, Family] = {
    "llama3": Family(
        "Llama 3, tied",
        "LlamaForCausalLM",
        text(
            tie_word_embeddings=True,
            head_dim=16,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        ),
    ),
    "qwen3": Family("Qwen3", "Qwen3ForCausalLM", text(head_dim=32, tie_word_embeddings=True)),
    "gemma2": Family("Gemma 2", "Gemma2ForCausalLM", GEMMA),
    "gemma3": Family("Gemma 3", "Gemma3ForCausalLM", GEMMA),
    # four streams of hidden states, so as many blocks as projections for the others
    "gemma3n": Family(
        "Gemma 3n",
        "Gemma3nForCausalLM",
        {
            **GEMMA_4_EMBEDDINGS,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_kv_shared_layers": 1,
            "altup_num_inputs": 4,
            "laurel_rank": 8,
        },
    ),
    "gemma4": Family(
        "Gemma 4",
        "Gemma4ForCausalLM",
        {
            **GEMMA_4,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
        },
    ),
    # the last two blocks read the keys and values of the first two, as in Gemma 3n
    "gemma4_per_layer": Family(
        "Gemma 4, per-layer embeddings (E2B, E4B)", "Gemma4ForCausalLM", GEMMA_4_EMBEDDINGS
    ),
    "phi3": Family("Phi-3, Phi-4", "Phi3ForCausalLM", text()),
    "ministral3": Family("Ministral 3", "Ministral3ForCausalLM", text(head_dim=16)),
    "olmo2": Family("OLMo 2", "Olmo2ForCausalLM", text()),
    "olmo3": Family("OLMo 3", "Olmo3ForCausalLM", text(**SLIDING)),
    "glm4": Family("GLM-4", "Glm4ForCausalLM", text(head_dim=16)),
    "smollm3": Family("SmolLM3", "SmolLM3ForCausalLM", text(no_rope_layers=[1, 0])),
    "hunyuan": Family("Hunyuan", "HunYuanDenseV1ForCausalLM", text(head_dim=16)),
    "apertus": Family("Apertus", "ApertusForCausalLM", text(rope_parameters=ROPE)),
    "exaone4": Family("EXAONE 4", "Exaone4ForCausalLM", text(**SLIDING)),
    "seed_oss": Family("Seed-OSS", "SeedOssForCausalLM", text(head_dim=16)),
    "cohere2": Family("Command R7B, Command A", "Cohere2ForCausalLM", text(**SLIDING)),
    "bitnet": Family("BitNet, dense weights", "BitNetForCausalLM", text()),
}
