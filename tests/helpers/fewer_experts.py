"""Mixtures of many families, and what they do without some of their experts, by other means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from sparsity_search.models.anatomy.experts import find_mixtures
from sparsity_search.testing.families import FAMILIES

#: Experts of the models below.
COUNT = 8
_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

#: Families from which whole experts are removed, with changes of their fields.
REMOVABLE: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        # the router has a bias, or corrects its choice with one; two have groups of experts
        *("gpt_oss", "glm4_moe", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "dots1"),
        *("ernie4_5_moe", "lfm2_moe", "minimax_m2", "mimo_v2_flash", "nemotron_h"),
        # the router's weight is a linear layer inside of it
        *("hunyuan_moe", "gemma4_moe"),
        *("deepseek_v2", "llama4_text", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe"),
        *("qwen3_5_moe_text", "phimoe", "granitemoe", "granitemoehybrid", "minimax"),
        *("kimi_linear", "glm5"),
    )
}
REMOVABLE["deepseek_v2"] = {"topk_method": "group_limited_greedy"}
REMOVABLE["nemotron_h"] = {"moe_latent_size": 32}  # experts are narrower than the router
REMOVABLE["llama4_text"] = {"num_experts_per_tok": 2}


#: Families whose mixtures are broken or built in another way in older releases of transformers.
_RECENT = ("hunyuan_moe", "deepseek_v2", "phimoe", "granitemoe", "granitemoehybrid")


def require(name: str) -> None:
    """Skip the test if this release of transformers has no such mixture."""
    recent = Version(transformers.__version__) >= Version("5.23.0")
    if not FAMILIES[name].is_available() or (name in _RECENT and not recent):
        pytest.skip(f"this release of transformers has no such {name}")


def make(name: str, **changes: Any) -> Any:
    """Return the tiny model of a family with `COUNT` experts."""
    family = FAMILIES[name]
    counts = {key: COUNT for key in _KEYS if key in family.fields}
    fields = {**family.fields, **counts, **REMOVABLE.get(name, {}), **changes}
    return replace(family, fields=fields).make()


@contextmanager
def never_chosen(model: nn.Module, experts: Mapping[str, list[int]]) -> Iterator[None]:
    """Within, the routers of mixtures, by name, never choose some experts.

    Their logits and what corrects the choice are -inf.
    """
    with ExitStack() as stack:
        for mixture in find_mixtures(model):
            gone, count = experts[mixture.name], mixture.count
            for router in mixture.routers():
                own = router.forward
                router.forward = _masked(own, gone, count)
                stack.callback(setattr, router, "forward", own)
            tensors = [*mixture.module.named_parameters(), *mixture.module.named_buffers()]
            for name, tensor in tensors:
                if name.endswith(("correction_bias", "expert_bias")):
                    stack.callback(tensor.data.copy_, tensor.clone())
                    tensor.data[..., gone] = -torch.inf
        yield


def _masked(forward: Callable[..., Any], gone: list[int], count: int) -> Callable[..., Any]:
    linear = nn.functional.linear

    def masked_linear(*args: Any) -> Tensor:
        logits = linear(*args)
        if logits.shape[-1] == count:
            logits = logits.index_fill(-1, torch.tensor(gone), -torch.inf)
        return logits

    def masked(*args: Any, **kwargs: Any) -> Any:
        nn.functional.linear = masked_linear  # type: ignore[assignment]
        try:
            return forward(*args, **kwargs)
        finally:
            nn.functional.linear = linear  # type: ignore[assignment]

    return masked


def saliencies(model: nn.Module, tokens: Tensor) -> dict[str, list[float]]:
    """Return by mixture each expert's mean of gate weight times output norm, in float64.

    Token by token, by the weights alone; choice and gate weights are the router's own. Llama 4
    multiplies what an expert reads, so its gates are ones.
    """
    sizes: dict[str, list[list[float]]] = {}
    handles = []
    for mixture in find_mixtures(model):
        found = sizes[mixture.name] = [[] for _ in range(mixture.count)]

        def watch(experts: Any, args: Any, kwargs: Any, found: Any = found) -> None:
            hidden, *routing = (*args, *kwargs.values())
            if not routing:
                for number, own in enumerate(hidden.view(len(found), -1, hidden.shape[-1])):
                    live = own[own.abs().sum(dim=1) > 0]
                    found[number] += [float(_output(experts, number, x).norm()) for x in live]
                return
            for token, chosen, gates in zip(hidden, *routing, strict=True):
                for number, gate in zip(chosen.tolist(), gates.tolist(), strict=True):
                    found[number].append(gate * float(_output(experts, number, token).norm()))

        handles.append(mixture.experts.register_forward_pre_hook(watch, with_kwargs=True))
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: [sum(own) / max(len(own), 1) for own in found] for name, found in sizes.items()}


def _output(experts: Any, number: int, token: Tensor) -> Tensor:
    """Return an expert's output for one token."""
    first = getattr(experts, "gate_up_proj", None)
    first = (experts.up_proj if first is None else first)[number].double()
    last = experts.down_proj[number].double()
    if len(last) != len(token):  # stored transposed
        first, last = first.T, last.T
    made = first @ token.double()
    if hasattr(experts, "gate_up_proj_bias"):  # gpt-oss, which limits both and opens the gate
        made = made + experts.gate_up_proj_bias[number].double()
        gate = made[0::2].clamp(max=experts.limit)
        up = made[1::2].clamp(-experts.limit, experts.limit) + 1
        inner = up * gate * (gate * experts.alpha).sigmoid()
        return last @ inner + experts.down_proj_bias[number].double()
    if hasattr(experts, "gate_up_proj"):
        gate, up = made.chunk(2)
        return last @ (experts.act_fn(gate) * up)
    return last @ experts.act_fn(made)
