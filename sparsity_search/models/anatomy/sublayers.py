"""Attention and feed-forward of a block: their linear layers by role, and their structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.linears import read_matrix
from sparsity_search.models.anatomy.unit_kind import DecoderBlock
from sparsity_search.models.anatomy.views import LayerPart

#: Roles of a sublayer's linear layers, consumer first → role of the sublayer.
_KINDS = {
    ("o", "q", "k", "v"): "attention",
    ("o", "qkv"): "attention",
    ("down", "gate", "up"): "feed_forward",
    ("down", "gate_up"): "feed_forward",
    ("down", "up"): "feed_forward",
}

#: Roles of layers with rows of several kinds: their sublayers can only be removed as a whole.
_FUSED = {"qkv", "gate_up"}


@dataclass(frozen=True, eq=False)
class Sublayer:
    """The attention or the feed-forward of a block.

    Attributes:
        name: Full name of its module.
        role: ``"attention"`` or ``"feed_forward"``.
        linears: Its linear layers by role, consumer first.
        divisible: Whether its heads or channels are independent: neither fused nor normalised
            together.
    """

    name: str
    role: str
    linears: dict[str, nn.Linear]
    divisible: bool

    @property
    def consumer(self) -> nn.Linear:
        """The layer that reads the structures and writes to the hidden states."""
        return next(iter(self.linears.values()))

    def parts(self, index: dict[str, Tensor]) -> list[LayerPart]:
        """Return the parts of structures, given their columns or rows in each layer by role."""
        consumer = self.consumer
        return [
            LayerPart(self.linears[r], self.linears[r] is consumer, i) for r, i in index.items()
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """Columns of the consumer and rows of the other layers, by role."""
        consumer = self.consumer
        return {r: read_matrix(f).shape[f is consumer] for r, f in self.linears.items()}

    def whole(self) -> list[LayerPart]:
        """Return the parts of a single structure, the whole sublayer."""
        return self.parts({role: torch.arange(size)[None] for role, size in self.sizes.items()})


def find_sublayers(block: DecoderBlock) -> list[Sublayer]:
    """Return the block's attention and feed-forward, in forward order.

    Raises:
        ModelError: It has neither.
    """
    parents: dict[str, list[tuple[str, nn.Linear]]] = {}
    for full, role in block.roles.items():
        parents.setdefault(full.rpartition(".")[0], []).append((role, block.linears[full]))
    result = [
        _build_sublayer(block, name, kind, dict(pairs))
        for name, pairs in parents.items()
        for kind in _KINDS
        if sorted(kind) == sorted(role for role, _ in pairs)
    ]
    if not result:
        raise ModelError(
            f"{block.name} has no recognised attention or feed-forward ({_list_roles(block)})"
        )
    return result


def find_divisible_sublayers(block: DecoderBlock) -> list[Sublayer]:
    """Return the sublayers with independent heads or channels, in forward order.

    Raises:
        ModelError: There is none.
    """
    result = [sublayer for sublayer in find_sublayers(block) if sublayer.divisible]
    if not result:
        raise ModelError(
            f"the heads and channels of {block.name} are not independent ({_list_roles(block)}): "
            "choose --units sublayers or blocks"
        )
    return result


def find_other_modules(block: DecoderBlock) -> list[str]:
    """Return the names of a block's modules that hold matrices outside of its sublayers.

    Examples are experts or a Mamba mixer.
    """
    inside = {linear for sublayer in find_sublayers(block) for linear in sublayer.linears.values()}
    return [
        name
        for name, module in block.module.named_modules()
        if module not in inside
        and "norm" not in type(module).__name__.lower()
        and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    ]


def build_channel_parts(sublayer: Sublayer) -> list[LayerPart]:
    """Return the parts of a feed-forward's channels: a column of the consumer, rows elsewhere."""
    return sublayer.parts({r: torch.arange(n)[:, None] for r, n in sublayer.sizes.items()})


def build_key_value_parts(sublayer: Sublayer, config: Any) -> list[LayerPart]:
    """Return the parts of an attention's key-value heads, each with the queries that read it."""
    groups = count_key_value_heads(config)
    return sublayer.parts({r: torch.arange(n).view(groups, -1) for r, n in sublayer.sizes.items()})


def count_key_value_heads(config: Any) -> int:
    """Return the number of key-value heads."""
    return getattr(config, "num_key_value_heads", None) or int(config.num_attention_heads)


def _build_sublayer(
    block: DecoderBlock, name: str, kind: tuple[str, ...], linears: dict[str, nn.Linear]
) -> Sublayer:
    widths = {read_matrix(linears[role]).shape[0] for role in kind[1:]}
    module = block.module.get_submodule(name.removeprefix(block.name).removeprefix("."))
    layers = set(linears.values())
    # a norm over all heads changes the others when one is removed
    across = any(
        parameter.ndim > 0 and parameter.shape[-1] in widths
        for child in module.children()
        if child not in layers
        for parameter in child.parameters()
    )
    apart = _FUSED.isdisjoint(kind) and not (_KINDS[kind] == "attention" and across)
    return Sublayer(name, _KINDS[kind], {role: linears[role] for role in kind}, apart)


def _list_roles(block: DecoderBlock) -> str:
    return f"its layers are {', '.join(block.roles.values())}"
