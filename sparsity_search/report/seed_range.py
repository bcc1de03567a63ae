"""The values of several seeds at one point of a figure."""

from __future__ import annotations

from typing import NamedTuple


class SeedRange(NamedTuple):
    """The values of all seeds at one sparsity: mean, least and greatest."""

    sparsity: float
    mean: float
    low: float
    high: float
