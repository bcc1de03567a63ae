"""Tiny models, one for each way in which experts are stored or called; and what their experts do.

The formulas read one token at a time, in float64, with the model's weights alone.
"""

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

HIDDEN, INNER, EXPERTS, TOP_K = 32, 16, 4, 2
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


def _best(scores: Tensor, by: Tensor | None = None) -> dict[int, float]:
    chosen = (scores if by is None else by).sort(descending=True).indices[:TOP_K]
    return {int(e): float(scores[e]) for e in chosen}


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _corrected(mixture: Any, token: Tensor) -> dict[int, float]:
    scores = (mixture.gate.weight.double() @ token).sigmoid()
    return _best(scores, scores + mixture.gate.e_score_correction_bias.double())


def _by_logits(weight: str) -> Any:
    """Return a choice by the largest logits."""

    def choose(mixture: Any, token: Tensor) -> dict[int, float]:
        return _best(mixture.get_parameter(weight).double() @ token)

    return choose


def _fused(mixture: Any, expert: int) -> dict[str, Tensor]:
    stored = mixture.experts
    return {
        "gate_up_proj": stored.gate_up_proj[expert].double(),
        "down_proj": stored.down_proj[expert].double(),
    }


def _transposed(mixture: Any, expert: int) -> dict[str, Tensor]:
    return {name: matrix.T for name, matrix in _fused(mixture, expert).items()}


def _gated(matrices: Callable[[Any, int], dict[str, Tensor]]) -> Any:
    def activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
        made = matrices(mixture, expert)["gate_up_proj"] @ token
        return _silu(made[:INNER]) * made[INNER:]

    return activation


def _gpt_oss_choice(mixture: Any, token: Tensor) -> dict[int, float]:
    return _best(mixture.router.weight.double() @ token + mixture.router.bias.double())


def _gpt_oss_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    stored = mixture.experts
    made = token @ stored.gate_up_proj[expert].double() + stored.gate_up_proj_bias[expert].double()
    limit = stored.limit  # older releases do not take it from the configuration
    gate = made[0::2].clamp(max=limit)
    return (made[1::2].clamp(-limit, limit) + 1) * gate * (1.702 * gate).sigmoid()


_LIMIT = 0.5  # so low that it matters


def _nemotron_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    stored = mixture.experts
    return {name: getattr(stored, name)[expert].double() for name in ("up_proj", "down_proj")}


def _nemotron_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    return (_nemotron_matrices(mixture, expert)["up_proj"] @ token).relu().square()


def _llama4_choice(mixture: Any, token: Tensor) -> dict[int, float]:
    logits = _best(mixture.router.weight.double() @ token)
    return {expert: float(torch.tensor(logit).sigmoid()) for expert, logit in logits.items()}


def _dbrx_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    rows = slice(expert * INNER, (expert + 1) * INNER)
    w1, v1, w2 = (getattr(mixture.experts.mlp, n)[rows].double() for n in ("w1", "v1", "w2"))
    return {"w1": w1, "v1": v1, "w2": w2.T}


def _dbrx_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    found = _dbrx_matrices(mixture, expert)
    return _silu(found["w1"] @ token) * (found["v1"] @ token)


def _jetmoe_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    return {"weight": mixture.input_linear.weight[expert].double()}


def _listed_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    return {
        f"{name}": mixture.experts[expert].get_submodule(name).weight.double()
        for name in ("w1", "w3", "w2")
    }


def _listed_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    found = _listed_matrices(mixture, expert)
    return _silu(found["w1"] @ token) * (found["w3"] @ token)


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


_MLP = "model.layers.1.mlp"
_TRANSPOSED: dict[str, Any] = {"matrices": _transposed, "activation": _gated(_transposed)}

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
        choose=_gpt_oss_choice,
        matrices=_transposed,
        activation=_gpt_oss_activation,
        rows="router.weight",
    ),
    # transposed
    "aria": Family(
        make=_build("AriaText", moe_num_experts=EXPERTS, moe_topk=TOP_K),
        since="5.23.0",  # linear layers of a kind of its own before, which are refused
        mixture=_MLP,
        choose=_by_logits("router.weight"),
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
        choose=_corrected,
        matrices=_nemotron_matrices,
        activation=_nemotron_activation,
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
        choose=_llama4_choice,
        scaled=True,
        rows="router.weight",
        **_TRANSPOSED,
    ),
    # 2-D parameters, expert below expert; tokens come by sequence
    "dbrx": Family(
        make=_dbrx,
        mixture="transformer.blocks.1.ffn",
        choose=_by_logits("router.layer.weight"),
        rows="router.layer.weight",
        matrices=_dbrx_matrices,
        activation=_dbrx_activation,
        since="5.23.0",  # takes the two widths for one another before
    ),
    # one module for each linear layer, called with the tokens sorted by expert
    "jetmoe": Family(
        make=_build("JetMoe", kv_channels=8, num_local_experts=EXPERTS, **_MOE),
        mixture=_MLP,
        choose=_by_logits("router.layer.weight"),
        rows="router.layer.weight",
        matrices=_jetmoe_matrices,
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
        choose=_corrected,
        matrices=_fused,
        activation=_gated(_fused),
    ),
    # a list of modules
    "listed": Family(
        make=listed,
        mixture=_MLP,
        choose=_by_logits("gate.weight"),
        matrices=_listed_matrices,
        activation=_listed_activation,
    ),
}


def layout(name: str) -> Family:
    """Return one of `LAYOUTS`; where this release of transformers has it not, skip the test."""
    found = LAYOUTS[name]
    if Version(T.__version__) < Version(found.since):
        pytest.skip(f"needs transformers {found.since}")
    return found
