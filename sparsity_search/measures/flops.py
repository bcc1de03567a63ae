"""Floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.measure import Measure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.profiles.layout import Unit
from sparsity_search.spaces.prices import PriceCurve

#: Channels that attention multiplies with each token of the context, for each row or column of
#: a layer. Fused queries are as many as the values that the output layer reads.
_OVER_CONTEXT = {"q": 1, "o": 1}
_OVER_CONTEXT_IF_FUSED = {"o": 2}


@dataclass(frozen=True, kw_only=True)
class FlopsMeasure(Measure):
    """Floating-point operations of one token: two for each weight, and those of attention.

    A query channel is multiplied with the keys of the context, a value channel with the
    attention weights: two operations for each earlier token and the token itself, which are
    ``(length + 1) / 2`` tokens on average.

    Args:
        length: Tokens of a sequence.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads", "sublayers", "blocks")

    length: int = 1024

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length must be at least 1, not {self.length}")

    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        """Return a straight line for each unit."""
        roles = subject.linear_roles()
        return [self._curve(unit, subject, roles) for unit in subject.layout]

    def _curve(
        self, unit: Unit, subject: PrunableModel, roles: dict[nn.Linear, str]
    ) -> PriceCurve:
        view = subject.views[unit.name]
        assert isinstance(view, StructuredView)  # of all these kinds
        widths = [(roles[part.linear], part.index.shape[1]) for part in view.parts]
        fused = any(role == "qkv" for role, _ in widths)
        times = _OVER_CONTEXT_IF_FUSED if fused else _OVER_CONTEXT
        channels = sum(width * times.get(role, 0) for role, width in widths)
        each = 2 * unit.cost + (self.length + 1) * channels
        return PriceCurve((0, unit.count), (0.0, float(unit.count * each)))
