"""Weights that several decoder blocks share, as in Zamba 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

#: Number of tokens that show which block calls a layer.
_TRIED = 4


def find_owners(model: nn.Module, blocks: Sequence[nn.Module] | nn.ModuleList) -> dict[int, int]:
    """Return the block in which each parameter is pruned that several blocks have.

    It is the first one that calls a layer with it, or else the first one that has it: the shared
    part of a block also holds layers that only later blocks call.

    Returns:
        Index of the block by the parameter's ``id``; without the parameters of a single block.
    """
    holders: dict[int, list[int]] = {}
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            holders.setdefault(id(parameter), []).append(index)
    shared = {parameter: found[0] for parameter, found in holders.items() if len(found) > 1}
    return {**shared, **_find_callers(model, blocks, shared)} if shared else {}


@torch.inference_mode()
def _find_callers(
    model: nn.Module, blocks: Sequence[nn.Module] | nn.ModuleList, shared: dict[int, int]
) -> dict[int, int]:
    """Return the first block that calls a layer with each of these parameters."""
    callers: dict[int, int] = {}
    current = 0

    def enter(index: int) -> Any:
        def hook(*_: Any) -> None:
            nonlocal current
            current = index

        return hook

    def call(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if id(parameter) in shared:
                callers.setdefault(id(parameter), current)

    handles = [block.register_forward_pre_hook(enter(i)) for i, block in enumerate(blocks)]
    layers = {layer for block in blocks for layer in block.modules()}
    handles += [layer.register_forward_pre_hook(call) for layer in layers]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.arange(_TRIED, device=device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return callers
