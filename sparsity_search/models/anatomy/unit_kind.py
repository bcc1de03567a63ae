"""Interface of kinds of units, which divide a decoder block into prunable units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from sparsity_search.models.anatomy.linears import find_linears
from sparsity_search.models.anatomy.roles import infer_roles
from sparsity_search.models.anatomy.views import WeightView


@dataclass(frozen=True, eq=False)
class DecoderBlock:
    """One decoder block.

    Attributes:
        name: Its full name, e.g. ``"model.layers.3"``.
        module: The block.
        config: The text model's configuration.
        model: The whole model.
        patterns: Roles of linear layers by regular expression, see `infer_roles`.
    """

    name: str
    module: nn.Module
    config: Any
    model: nn.Module
    patterns: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by full name, in forward order."""
        return find_linears(self.module, self.name)

    @cached_property
    def roles(self) -> dict[str, str]:
        """The role of each linear layer by full name."""
        full = {name.removeprefix(f"{self.name}."): name for name in self.linears}
        return {full[name]: role for name, role in infer_roles(full, self.patterns).items()}


@dataclass(frozen=True, eq=False)
class FoundUnit:
    """A unit of a block: its full name, its role and its weights."""

    name: str
    role: str
    view: WeightView


class UnitKind(ABC):
    """Base of kinds of units. Plugins are frozen keyword-only dataclasses."""

    @abstractmethod
    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the block's units in forward order.

        Raises:
            ModelError: This kind does not support the block.
        """

    def check(self, model: nn.Module, views: Sequence[WeightView]) -> None:
        """Check all units of a model together; by default nothing can be wrong.

        Args:
            model: The model.
            views: Its units, also the excluded ones.

        Raises:
            ModelError: The model cannot be pruned in them.
        """
        del model, views
