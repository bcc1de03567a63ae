"""Mixtures of experts."""

from __future__ import annotations

from sparsity_search.testing.families.family import Family
from sparsity_search.testing.families.shapes import (
    GEMMA_4,
    GROUPED,
    LATENT,
    LLAMA_4,
    LOCAL_MIXTURE,
    MIXTURE,
    ROPE,
    ROUTED,
    SHARED_EXPERT,
    SLIDING,
    text,
)

#: Mixtures of experts.
MIXTURES: dict[str, Family] = {
    "qwen2_moe": Family("Qwen2-MoE", "Qwen2MoeForCausalLM", text(**SHARED_EXPERT)),
    "qwen3_moe": Family("Qwen3-MoE", "Qwen3MoeForCausalLM", text(head_dim=16, **MIXTURE)),
    "gemma4_moe": Family(
        "Gemma 4, mixture",
        "Gemma4ForCausalLM",
        {
            **GEMMA_4,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "phimoe": Family("Phi-3.5-MoE", "PhimoeForCausalLM", text(**LOCAL_MIXTURE)),
    "deepseek_v2": Family(
        "DeepSeek-V2",
        "DeepseekV2ForCausalLM",
        text(first_k_dense_replace=1, **LATENT, **GROUPED),
    ),
    "deepseek_v3": Family(
        "DeepSeek-V3, Kimi K2",
        "DeepseekV3ForCausalLM",
        text(first_k_dense_replace=1, **LATENT, **GROUPED),
    ),
    "deepseek_v32": Family(
        "DeepSeek-V3.2",
        "DeepseekV32ForCausalLM",
        text(
            first_k_dense_replace=1,
            index_head_dim=16,
            index_n_heads=2,
            index_topk=16,
            **LATENT,
            **GROUPED,
        ),
    ),
    # two streams of hidden states; the first block routes tokens by their ids
    "deepseek_v4": Family(
        "DeepSeek-V4",
        "DeepseekV4ForCausalLM",
        text(
            head_dim=16,
            num_key_value_heads=1,
            q_lora_rank=32,
            o_lora_rank=16,
            o_groups=2,
            hc_mult=2,
            index_n_heads=2,
            index_head_dim=16,
            index_topk=4,
            sliding_window=8,
            layer_types=["heavily_compressed_attention", "compressed_sparse_attention"],
            compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            mlp_layer_types=["hash_moe", "moe"],
            **ROUTED,
        ),
    ),
    "gpt_oss": Family(
        "gpt-oss",
        "GptOssForCausalLM",
        text(head_dim=16, rope_parameters=ROPE, **SLIDING, **LOCAL_MIXTURE),
    ),
    "olmoe": Family("OLMoE", "OlmoeForCausalLM", text(num_experts=4, num_experts_per_tok=2)),
    "glm4_moe": Family(
        "GLM-4.5",
        "Glm4MoeForCausalLM",
        text(head_dim=16, first_k_dense_replace=1, **GROUPED),
    ),
    "glm4_moe_lite": Family(
        "GLM-4.7-Flash",
        "Glm4MoeLiteForCausalLM",
        text(mlp_layer_types=["dense", "sparse"], **LATENT, **GROUPED),
    ),
    "granitemoe": Family("Granite 3 MoE", "GraniteMoeForCausalLM", text(**LOCAL_MIXTURE)),
    "ernie4_5_moe": Family(
        "ERNIE 4.5 MoE",
        "Ernie4_5_MoeForCausalLM",
        text(
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=32,
            moe_layer_start_index=1,
            moe_layer_interval=1,
            moe_num_shared_experts=1,
            moe_layer_end_index=1,
        ),
    ),
    "minimax_m2": Family(
        "MiniMax-M2",
        "MiniMaxM2ForCausalLM",
        text(head_dim=16, intermediate_size=32, rope_parameters=ROPE, **LOCAL_MIXTURE),
    ),
    "hunyuan_moe": Family(
        "Hunyuan-A13B",
        "HunYuanMoEV1ForCausalLM",
        text(
            head_dim=16,
            num_experts=4,
            moe_topk=2,
            num_shared_expert=1,
            moe_intermediate_size=32,
        ),
    ),
    "llama4_text": Family("Llama 4, text", "Llama4ForCausalLM", LLAMA_4),
    "dots1": Family(
        "dots.llm1",
        "Dots1ForCausalLM",
        text(head_dim=16, first_k_dense_replace=1, **GROUPED),
    ),
    "mimo_v2_flash": Family(
        "MiMo-V2-Flash",
        "MiMoV2FlashForCausalLM",
        text(head_dim=16, v_head_dim=16, **ROUTED, **SLIDING),
    ),
    # blocks pass the selection of keys to the next ones
    "glm5": Family(
        "GLM-5",
        "GlmMoeDsaForCausalLM",
        text(
            first_k_dense_replace=1,
            index_head_dim=16,
            index_n_heads=2,
            index_topk=4,
            indexer_types=["full", "shared"],
            **LATENT,
            **GROUPED,
        ),
    ),
    # blocks pass states of routers to the next ones
    "zaya": Family(
        "ZAYA1",
        "ZayaForCausalLM",
        text(
            head_dim=16,
            router_hidden_size=16,
            **{**MIXTURE, "num_experts_per_tok": 1},
        ),
    ),
    # a block counts as two layers
    "longcat_flash": Family(
        "LongCat-Flash",
        "LongcatFlashForCausalLM",
        {
            **text(**LATENT, head_dim=8, num_hidden_layers=4),
            "ffn_hidden_size": 128,
            "expert_ffn_hidden_size": 32,
            "moe_topk": 2,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
        },
    ),
}
