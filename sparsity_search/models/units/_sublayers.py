"""Attention and feed-forward of a block as linear layers by role, and structures in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.models.roles import role_of
from sparsity_search.models.units.base import Block
from sparsity_search.models.views import Part

#: The roles of a sublayer's linears, the one that reads its structures first → its own role.
_KINDS = {
    ("o", "q", "k", "v"): "attention",
    ("down", "gate", "up"): "feed_forward",
    ("down", "up"): "feed_forward",
}


@dataclass(frozen=True, eq=False)
class Sublayer:
    """The attention or the feed-forward of a block.

    Attributes:
        name: Full name of its module.
        role: ``"attention"`` or ``"feed_forward"``.
        linears: Its linear layers by role; the consumer first.
    """

    name: str
    role: str
    linears: dict[str, nn.Linear]

    @property
    def consumer(self) -> nn.Linear:
        """The layer that reads the structures and writes to the hidden states."""
        return next(iter(self.linears.values()))

    def parts(self, index: dict[str, Tensor]) -> list[Part]:
        """Return parts of structures from their columns or rows of each layer, by role."""
        consumer = self.consumer
        return [Part(self.linears[r], self.linears[r] is consumer, i) for r, i in index.items()]

    @property
    def sizes(self) -> dict[str, int]:
        """Columns of the consumer and rows of the other layers, by role."""
        consumer = self.consumer
        return {r: f.weight.shape[1 if f is consumer else 0] for r, f in self.linears.items()}

    def whole(self) -> list[Part]:
        """Return the parts of the one structure that is all of the sublayer."""
        return self.parts({role: torch.arange(size)[None] for role, size in self.sizes.items()})


def sublayers(block: Block) -> list[Sublayer]:
    """Return the block's attention and feed-forward, in forward order.

    Raises:
        ModelError: It has neither.
    """
    found: dict[str, dict[str, nn.Linear]] = {}
    for name, module in block.module.named_modules():
        if isinstance(module, nn.Linear):
            full = f"{block.name}.{name}"
            found.setdefault(full.rpartition(".")[0], {})[role_of(full)] = module
    result = [
        Sublayer(name, _KINDS[kind], {role: linears[role] for role in kind})
        for name, linears in found.items()
        for kind in _KINDS
        if set(kind) == set(linears)
    ]
    if not result:
        names = ", ".join(role for linears in found.values() for role in linears)
        raise ModelError(
            f"{block.name} has no attention or feed-forward that is known: its layers are {names}"
        )
    return result


def channels(sublayer: Sublayer) -> list[Part]:
    """Return the parts of a feed-forward's channels: one row of its makers, one column."""
    return sublayer.parts({r: torch.arange(n)[:, None] for r, n in sublayer.sizes.items()})


def key_value_groups(sublayer: Sublayer, config: Any) -> list[Part]:
    """Return the parts of an attention's key-value heads, each with the queries that read it."""
    groups = n_groups(config)
    return sublayer.parts({r: torch.arange(n).view(groups, -1) for r, n in sublayer.sizes.items()})


def n_groups(config: Any) -> int:
    """Return the number of key-value heads."""
    return getattr(config, "num_key_value_heads", None) or int(config.num_attention_heads)
