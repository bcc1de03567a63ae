"""What experts of the tiny models compute: one token at a time, in float64, by weights alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HIDDEN, INNER, EXPERTS, TOP_K = 32, 16, 4, 2


def best(scores: Tensor, by: Tensor | None = None) -> dict[int, float]:
    chosen = (scores if by is None else by).sort(descending=True).indices[:TOP_K]
    return {int(e): float(scores[e]) for e in chosen}


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def corrected(mixture: Any, token: Tensor) -> dict[int, float]:
    scores = (mixture.gate.weight.double() @ token).sigmoid()
    return best(scores, scores + mixture.gate.e_score_correction_bias.double())


def by_logits(weight: str) -> Any:
    """Return a choice by the largest logits."""

    def choose(mixture: Any, token: Tensor) -> dict[int, float]:
        return best(mixture.get_parameter(weight).double() @ token)

    return choose


def fused(mixture: Any, expert: int) -> dict[str, Tensor]:
    stored = mixture.experts
    return {
        "gate_up_proj": stored.gate_up_proj[expert].double(),
        "down_proj": stored.down_proj[expert].double(),
    }


def transposed(mixture: Any, expert: int) -> dict[str, Tensor]:
    return {name: matrix.T for name, matrix in fused(mixture, expert).items()}


def gated(matrices: Callable[[Any, int], dict[str, Tensor]]) -> Any:
    def activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
        made = matrices(mixture, expert)["gate_up_proj"] @ token
        return silu(made[:INNER]) * made[INNER:]

    return activation


def gpt_oss_choice(mixture: Any, token: Tensor) -> dict[int, float]:
    return best(mixture.router.weight.double() @ token + mixture.router.bias.double())


def gpt_oss_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    stored = mixture.experts
    made = token @ stored.gate_up_proj[expert].double() + stored.gate_up_proj_bias[expert].double()
    limit = stored.limit  # older releases do not take it from the configuration
    gate = made[0::2].clamp(max=limit)
    return (made[1::2].clamp(-limit, limit) + 1) * gate * (1.702 * gate).sigmoid()


def nemotron_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    stored = mixture.experts
    return {name: getattr(stored, name)[expert].double() for name in ("up_proj", "down_proj")}


def nemotron_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    return (nemotron_matrices(mixture, expert)["up_proj"] @ token).relu().square()


def llama4_choice(mixture: Any, token: Tensor) -> dict[int, float]:
    logits = best(mixture.router.weight.double() @ token)
    return {expert: float(torch.tensor(logit).sigmoid()) for expert, logit in logits.items()}


def dbrx_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    rows = slice(expert * INNER, (expert + 1) * INNER)
    w1, v1, w2 = (getattr(mixture.experts.mlp, n)[rows].double() for n in ("w1", "v1", "w2"))
    return {"w1": w1, "v1": v1, "w2": w2.T}


def dbrx_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    found = dbrx_matrices(mixture, expert)
    return silu(found["w1"] @ token) * (found["v1"] @ token)


def jetmoe_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    return {"weight": mixture.input_linear.weight[expert].double()}


def listed_matrices(mixture: Any, expert: int) -> dict[str, Tensor]:
    return {
        f"{name}": mixture.experts[expert].get_submodule(name).weight.double()
        for name in ("w1", "w3", "w2")
    }


def listed_activation(mixture: Any, expert: int, token: Tensor) -> Tensor:
    found = listed_matrices(mixture, expert)
    return silu(found["w1"] @ token) * (found["w3"] @ token)
