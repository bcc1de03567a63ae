"""Models with state spaces, convolutions or linear attention."""

from __future__ import annotations

from sparsity_search.testing.families.family import Family
from sparsity_search.testing.families.shapes import (
    DELTA,
    LATENT,
    LINEAR,
    LOCAL_MIXTURE,
    MAMBA,
    MIXTURE,
    ROUTED,
    SHARED_EXPERT,
    text,
)
from sparsity_search.testing.models import VOCABULARY

#: Models with state spaces, convolutions or linear attention.
HYBRID: dict[str, Family] = {
    "qwen3_next": Family(
        "Qwen3-Next", "Qwen3NextForCausalLM", text(head_dim=16, **SHARED_EXPERT, **DELTA)
    ),
    "qwen3_5_text": Family(
        "Qwen3.5, text", "Qwen3_5ForCausalLM", text(head_dim=16, rope_parameters=None, **DELTA)
    ),
    "qwen3_5_moe_text": Family(
        "Qwen3.5-MoE, text",
        "Qwen3_5MoeForCausalLM",
        text(head_dim=16, **SHARED_EXPERT, **DELTA),
    ),
    "olmo_hybrid": Family("OLMo Hybrid", "OlmoHybridForCausalLM", text(**DELTA)),
    "granitemoehybrid": Family(
        "Granite 4",
        "GraniteMoeHybridForCausalLM",
        text(
            intermediate_size=32,
            shared_intermediate_size=32,
            layers_block_type=["mamba", "attention"],
            **LOCAL_MIXTURE,
            **MAMBA,
        ),
    ),
    "mamba2": Family(
        "Mamba 2",
        "Mamba2ForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "initializer_range": 0.1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
    ),
    "falcon_h1": Family(
        "Falcon-H1",
        "FalconH1ForCausalLM",
        text(head_dim=16, **{**MAMBA, "mamba_d_ssm": 64, "mamba_n_heads": 4}),
    ),
    "bamba": Family("Bamba", "BambaForCausalLM", text(attn_layer_indices=[1], **MAMBA)),
    "zamba2": Family(
        "Zamba 2",
        "Zamba2ForCausalLM",
        text(
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            num_mem_blocks=1,
            num_key_value_heads=4,
            n_mamba_heads=8,
            mamba_d_state=16,
            chunk_size=16,
            use_mem_rope=True,
        ),
    ),
    "nemotron_h": Family(
        "Nemotron-H, Nemotron 3",
        "NemotronHForCausalLM",
        text(
            head_dim=16,
            layers_block_type=["mamba", "attention", "moe", "mlp"],
            num_hidden_layers=4,
            mamba_num_heads=8,
            mamba_head_dim=16,
            ssm_state_size=16,
            n_groups=1,
            chunk_size=16,
            n_group=1,
            topk_group=1,
            moe_shared_expert_intermediate_size=32,
            **ROUTED,
        ),
    ),
    "lfm2": Family(
        "LFM2",
        "Lfm2ForCausalLM",
        text(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    ),
    "lfm2_moe": Family(
        "LFM2-MoE",
        "Lfm2MoeForCausalLM",
        text(layer_types=["conv", "full_attention"], num_dense_layers=1, **MIXTURE),
    ),
    "minimax": Family(
        "MiniMax-01",
        "MiniMaxForCausalLM",
        text(head_dim=16, block_size=16, **LINEAR, **LOCAL_MIXTURE),
    ),
    "kimi_linear": Family(
        "Kimi Linear",
        "KimiLinearForCausalLM",
        text(
            linear_head_dim=16,
            linear_num_heads=4,
            mlp_layer_types=["dense", "sparse"],
            n_group=1,
            topk_group=1,
            **LINEAR,
            **MIXTURE,
            **LATENT,
        ),
    ),
}
