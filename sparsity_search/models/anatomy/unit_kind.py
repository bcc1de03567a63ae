"""Interface of kinds of units, which divide a decoder block into prunable units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsity_search.models.anatomy.views import View


@dataclass(frozen=True, eq=False)
class Block:
    """One decoder block.

    Attributes:
        name: Its full name, e.g. ``"model.layers.3"``.
        module: The block.
        config: The text model's configuration.
        model: The whole model.
    """

    name: str
    module: nn.Module
    config: Any
    model: nn.Module


@dataclass(frozen=True, eq=False)
class FoundUnit:
    """A unit of a block: its full name, its role and its weights."""

    name: str
    role: str
    view: View


class UnitKind(ABC):
    """Base of kinds of units. Plugins are frozen keyword-only dataclasses."""

    @abstractmethod
    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the block's units in forward order.

        Raises:
            ModelError: This kind does not support the block.
        """
