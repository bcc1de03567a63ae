"""A model family whose feed-forward has names that no heuristic knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sparsity_search.testing.models import tiny_llama

#: What its names mean, as users write it.
ROLES = {r"modulate$": "gate", "expand": "up", r"^mlp\.squash$": "down"}


class OddConfig(LlamaConfig):
    model_type = "odd_llama"


class OddMLP(nn.Module):
    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        outer, inner = config.hidden_size, config.intermediate_size
        self.modulate = nn.Linear(outer, inner, bias=False)
        self.expand = nn.Linear(outer, inner, bias=False)
        self.squash = nn.Linear(inner, outer, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        activated = nn.functional.silu(self.modulate(hidden)) * self.expand(hidden)
        result: Tensor = self.squash(activated)
        return result


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = OddMLP(config)
        self.post_init()


AutoConfig.register("odd_llama", OddConfig)
AutoModelForCausalLM.register(OddConfig, OddForCausalLM)


def odd_model() -> OddForCausalLM:
    """Return a random model with three blocks."""
    fields = tiny_llama().config.to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OddForCausalLM(OddConfig(**{**fields, "model_type": "odd_llama"}))
    return model.eval().requires_grad_(False)
