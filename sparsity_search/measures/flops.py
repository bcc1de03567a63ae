"""Floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsity_search.errors import ConfigError
from sparsity_search.layout import Unit
from sparsity_search.measures.base import Measure
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.models.roles import role_of
from sparsity_search.models.views import StructuredView
from sparsity_search.prices import Curve

#: Layers whose rows or columns attention multiplies once for each token of the context.
_OVER_CONTEXT = ("q", "o")


@dataclass(frozen=True, kw_only=True)
class Flops(Measure):
    """Floating-point operations of one token: two a weight, and those of its attention.

    A query channel meets the keys of the context, and a value channel its weights: two
    operations for each token before and the token itself, ``(length + 1) / 2`` in the mean.

    Args:
        length: Tokens of a sequence.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads", "sublayers", "blocks")

    length: int = 1024

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length must be at least 1, not {self.length}")

    def curves(self, subject: PrunableModel) -> Sequence[Curve]:
        """Return a straight line for each unit."""
        self.check(subject.units)
        roles = {
            id(module): role_of(name)
            for name, module in subject.model.named_modules()
            if isinstance(module, nn.Linear)
        }
        return [self._curve(unit, subject, roles) for unit in subject.layout]

    def _curve(self, unit: Unit, subject: PrunableModel, roles: dict[int, str]) -> Curve:
        view = subject.views[unit.name]
        assert isinstance(view, StructuredView)  # of all these kinds
        channels = sum(
            part.index.shape[1] for part in view.parts if roles[id(part.linear)] in _OVER_CONTEXT
        )
        each = 2 * unit.cost + (self.length + 1) * channels
        return Curve((0, unit.count), (0.0, float(unit.count * each)))
