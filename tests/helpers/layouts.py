"""Tiny models, one for each way in which experts are stored or called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as T
from packaging.version import Version
from torch import Tensor, nn

from sparsity_search.testing.models import VOCABULARY, tiny_mixtral
from tests.helpers import expert_formulas as formulas
from tests.helpers.expert_formulas import EXPERTS, HIDDEN, INNER, TOP_K

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_MOE = {"num_experts_per_tok": TOP_K, "moe_intermediate_size": INNER}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's tiny model.

    Attributes:
        make: Builds it.
        mixture: Name of the mixture of experts that is looked at; its first argument is tokens.
        experts: Names that stand between the mixture's and the expert's number, in units' names.
        choose: The experts of a token, with gate weights, from the mixture and the token.
        matrices: Of an expert, ``(outputs, inputs)``, by the unit's last name; from the mixture.
        activation: What an expert's last matrix reads.
        scaled: Experts read the token times its gate weight.
        rows: Name of the router's weight in the mixture, ``(experts, hidden)``.
        since: A release of transformers that has this layout, if the oldest allowed has not.
    """

    make: Callable[[], Any]
    mixture: str
    choose: Callable[[Any, Tensor], dict[int, float]]
    matrices: Callable[[Any, int], dict[str, Tensor]]
    activation: Callable[[Any, int, Tensor], Tensor]
    experts: str = "experts"
    scaled: bool = False
    rows: str = "gate.weight"
    since: str = "5.0.0"

    def module(self, model: Any) -> Any:
        return model.get_submodule(self.mixture)

    def unit(self, expert: int, matrix: str) -> str:
        return f"{self.mixture}.{self.experts}.{expert}.{matrix}"

    def unused(self, model: Any, experts: list[int]) -> None:
        """Make the mixture never choose some experts: a constant input decides against them."""
        module = self.module(model)

        def constant(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0].clone()
            hidden[..., 0] = 1.0
            return hidden, *args[1:]

        module.register_forward_pre_hook(constant)
        module.get_parameter(self.rows)[experts, 0] = -1e3
        for name, buffer in module.named_buffers():
            if name.endswith("correction_bias"):
                buffer[experts] = -1e3

    def direct(self, model: Any, tokens: Tensor) -> list[list[Tensor]]:
        """Return what each expert gets, token by token, in float64."""
        module, found = self.module(model), []
        handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False)
        handle.remove()
        got: list[list[Tensor]] = [[] for _ in range(EXPERTS)]
        for token in torch.cat([hidden.flatten(0, -2) for hidden in found]).double():
            for expert, gate in self.choose(module, token).items():
                got[expert].append(token * gate if self.scaled else token)
        return got

    def reads(self, module: Any, expert: int, last: str, token: Tensor) -> Tensor:
        """Return what a matrix reads of a token that the expert gets."""
        names = list(self.matrices(module, expert))
        return self.activation(module, expert, token) if last == names[-1] else token


def _build(kind: str, **fields: Any) -> Callable[[], Any]:
    """Return what builds a model; its biases are not zero."""

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = getattr(T, f"{kind}Config")(**{**_SHAPE, **fields})
            model = getattr(T, f"{kind.removesuffix('Text')}ForCausalLM", None)
            model = (model or getattr(T, f"{kind}ForCausalLM"))(config)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "bias" in name:
                    nn.init.normal_(tensor.data, std=0.3)
                elif tensor.ndim > 1:  # some start at zero, or at no values at all
                    nn.init.normal_(tensor.data, std=0.2)
        return model.eval().requires_grad_(False)

    return make


def listed(**fields: Any) -> Any:
    """A Mixtral whose experts are a list of modules, as models from outside transformers have."""
    model = tiny_mixtral(num_local_experts=EXPERTS, **fields)
    for layer in model.model.layers:
        layer.mlp = Listed(layer.mlp)
    return model.requires_grad_(False)


class Gated(nn.Module):
    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        for name, weight in zip(("w1", "w3", "w2"), (*gate_up.chunk(2), down), strict=True):
            linear = nn.Linear(*weight.T.shape, bias=False)
            linear.weight.data = weight.detach().clone()
            self.add_module(name, linear)

    def forward(self, tokens: Tensor) -> Tensor:
        made: Tensor = self.w2(nn.functional.silu(self.w1(tokens)) * self.w3(tokens))
        return made


class Listed(nn.Module):
    def __init__(self, mixture: Any) -> None:
        super().__init__()
        stored = mixture.experts
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.gate.weight.data = mixture.gate.weight.detach().clone()
        self.experts = nn.ModuleList(
            Gated(*pair) for pair in zip(stored.gate_up_proj, stored.down_proj, strict=True)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, -2)
        best, index = self.gate(tokens).softmax(-1).topk(TOP_K)
        best = best / best.sum(-1, keepdim=True)
        result = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slots = (index == number).nonzero(as_tuple=True)
            if len(rows):
                result.index_add_(0, rows, expert(tokens[rows]) * best[rows, slots, None])
        return result.view(hidden.shape)


def _dbrx() -> Any:
    fields = {
        "d_model": HIDDEN,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "vocab_size": VOCABULARY,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {
            "ffn_hidden_size": INNER,
            "hidden_size": HIDDEN,
            "moe_num_experts": EXPERTS,
            "moe_top_k": TOP_K,
        },
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T.DbrxForCausalLM(T.DbrxConfig(**fields))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter.data, std=0.2)
    return model.eval().requires_grad_(False)


_LIMIT = 0.5  # so low that it matters
_MLP = "model.layers.1.mlp"
_TRANSPOSED: dict[str, Any] = {
    "matrices": formulas.transposed,
    "activation": formulas.gated(formulas.transposed),
}

LAYOUTS: dict[str, Family] = {
    # transposed, gate and up alternate, biases (of the router too), a gate with a limit
    "gpt_oss": Family(
        make=_build(
            "GptOss",
            head_dim=8,
            num_local_experts=EXPERTS,
            swiglu_limit=_LIMIT,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=8,
            **_MOE,
        ),
        mixture=_MLP,
        choose=formulas.gpt_oss_choice,
        matrices=formulas.transposed,
        activation=formulas.gpt_oss_activation,
        rows="router.weight",
    ),
    # transposed
    "aria": Family(
        make=_build("AriaText", moe_num_experts=EXPERTS, moe_topk=TOP_K),
        since="5.23.0",  # linear layers of a kind of its own before, which are refused
        mixture=_MLP,
        choose=formulas.by_logits("router.weight"),
        rows="router.weight",
        **_TRANSPOSED,
    ),
    # no gate; the router's choice is corrected
    "nemotron_h": Family(
        make=_build(
            "NemotronH",
            head_dim=8,
            layers_block_type=["attention", "moe"],
            n_routed_experts=EXPERTS,
            n_group=1,
            topk_group=1,
            moe_shared_expert_intermediate_size=INNER,
            **_MOE,
        ),
        mixture="model.layers.1.mixer",
        choose=formulas.corrected,
        matrices=formulas.nemotron_matrices,
        activation=formulas.nemotron_activation,
        since="5.3.0",
    ),
    # one call with all tokens for each expert, those of other experts zeroed
    "llama4": Family(
        make=_build(
            "Llama4Text",
            head_dim=8,
            intermediate_size_mlp=INNER,
            num_local_experts=EXPERTS,
            interleave_moe_layer_step=1,
            **_MOE,
        ),
        mixture="model.layers.1.feed_forward",
        choose=formulas.llama4_choice,
        scaled=True,
        rows="router.weight",
        **_TRANSPOSED,
    ),
    # 2-D parameters, expert below expert; tokens come by sequence
    "dbrx": Family(
        make=_dbrx,
        mixture="transformer.blocks.1.ffn",
        choose=formulas.by_logits("router.layer.weight"),
        rows="router.layer.weight",
        matrices=formulas.dbrx_matrices,
        activation=formulas.dbrx_activation,
        since="5.23.0",  # takes the two widths for one another before
    ),
    # one module for each linear layer, called with the tokens sorted by expert
    "jetmoe": Family(
        make=_build("JetMoe", kv_channels=8, num_local_experts=EXPERTS, **_MOE),
        mixture=_MLP,
        choose=formulas.by_logits("router.layer.weight"),
        rows="router.layer.weight",
        matrices=formulas.jetmoe_matrices,
        activation=lambda _mixture, _expert, token: token,
        experts="input_linear",
    ),
    # as most, but the router's choice is corrected; a shared expert
    "deepseek_v3": Family(
        make=_build(
            "DeepseekV3",
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            num_key_value_heads=4,
            n_routed_experts=EXPERTS,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            **_MOE,
        ),
        mixture=_MLP,
        choose=formulas.corrected,
        matrices=formulas.fused,
        activation=formulas.gated(formulas.fused),
    ),
    # a list of modules
    "listed": Family(
        make=listed,
        mixture=_MLP,
        choose=formulas.by_logits("gate.weight"),
        matrices=formulas.listed_matrices,
        activation=formulas.listed_activation,
    ),
}


def layout(name: str) -> Family:
    """Return one of `LAYOUTS`; where this release of transformers has it not, skip the test."""
    found = LAYOUTS[name]
    if Version(T.__version__) < Version(found.since):
        pytest.skip(f"needs transformers {found.since}")
    return found
