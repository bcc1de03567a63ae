"""Tiny models with mixtures of experts, and what these do, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.whole_experts import ExpertsView
from sparsity_search.models.running.walk import Visit, walk
from sparsity_search.testing.models import VOCABULARY, tiny_mixtral

HIDDEN, INNER = 32, 16
WIDTH = 3 * INNER + 1
MLP = "model.layers.1.mlp"


def tiny_qwen3_moe(**fields: Any) -> nn.Module:
    """A Qwen3-MoE whose first block has no mixture: 6 experts, 3 a token, not normalised."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "moe_intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "mlp_only_layers": [0],
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**shape, **fields}))
    return model.eval().requires_grad_(False)


MODELS: dict[str, Callable[..., Any]] = {"mixtral": tiny_mixtral, "qwen3_moe": tiny_qwen3_moe}
TOP_K = {"mixtral": 2, "qwen3_moe": 3}


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=tokens, use_cache=False).logits
    return found.clone()


def experts_view(subject: PrunableModel, name: str = MLP) -> ExpertsView:
    view = subject.views[name]
    assert isinstance(view, ExpertsView)
    return view


def drop(view: ExpertsView, experts: list[int]) -> None:
    weight = view.read()
    view.structures.bodies(weight)[:, experts] = 0
    view.write(weight)


class Direct:
    """What the mixture of block 1 does, token by token, with its weights alone."""

    def __init__(self, model: Any, family: str, tokens: Tensor) -> None:
        mlp, found = model.model.layers[1].mlp, []
        handle = mlp.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        logits(model, tokens)
        handle.remove()
        self.hidden = torch.cat(found).reshape(-1, HIDDEN).clone()
        self.gate_up, self.down = mlp.experts.gate_up_proj, mlp.experts.down_proj
        self.rows = mlp.gate.weight
        self.chosen: list[dict[int, float]] = []
        for token in self.hidden:
            shares = (self.rows @ token).softmax(0)
            best = shares.sort(descending=True).indices[: TOP_K[family]]
            total = shares[best].sum() if family == "mixtral" else 1.0
            self.chosen.append({int(e): float(shares[e] / total) for e in best})

    def activation(self, expert: int, token: Tensor) -> Tensor:
        gate, up = self.gate_up[expert, :INNER] @ token, self.gate_up[expert, INNER:] @ token
        return gate * gate.sigmoid() * up

    def tokens_of(self, expert: int) -> Tensor:
        routed = [t for t, c in zip(self.hidden, self.chosen, strict=True) if expert in c]
        return torch.stack(routed) if routed else torch.empty(0, HIDDEN)

    def saliency(self, expert: int) -> float:
        sizes = [
            chosen[expert] * float((self.down[expert] @ self.activation(expert, token)).norm())
            for token, chosen in zip(self.hidden, self.chosen, strict=True)
            if expert in chosen
        ]
        return sum(sizes) / len(sizes) if sizes else 0.0


def visit_of(subject: PrunableModel, tokens: Tensor, statistic: Statistic) -> Visit:
    return list(walk(subject, tokens, statistic, rewritten=False))[1]


def unused(model: Any, experts: list[int], block: int = 1) -> None:
    """Make a mixture never choose some experts: a constant input decides against them.

    The input's first channel becomes 1 for every token: the norm before the mixture is told so.
    """

    def constant(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        output = output.clone()
        output[..., 0] = 1.0
        return output

    layer = model.model.layers[block]
    layer.post_attention_layernorm.register_forward_hook(constant)
    layer.mlp.gate.weight[experts, 0] = -1e3
