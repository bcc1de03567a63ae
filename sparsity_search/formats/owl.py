"""Ratios by layer or block, as scripts around OWL keep them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sparsity_search.errors import ConfigError, ProfileError, told_of
from sparsity_search.formats.bases.layers import match_ratios, require_layout, round_to_counts
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.layout import Layout
from sparsity_search.utils.reading import parse_yaml


@dataclass(frozen=True, kw_only=True)
class OwlFormat(Format):
    """Sparsity by layer name or block index, in JSON or YAML, as OWL gives one to each block.

    OWL (arXiv 2310.05175) has one ratio a block that all its linears share. Ratios are sparsities:
    the fraction that is removed, not OWL's density.

    Args:
        by: What is written: a ratio for each ``unit``, or for each ``block`` the mean of its
            units, weighted by parameters. Both are read.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".yaml", ".yml")

    by: Literal["unit", "block"] = "unit"

    def __post_init__(self) -> None:
        if self.by not in ("unit", "block"):
            raise ConfigError(f"by must be unit or block, not {self.by!r}")

    def read(self, text: str, layout: Layout | None = None) -> ProfileDocument:
        """Return the counts nearest to a mapping's ratios, or to a list's, one for each block."""
        with told_of("not YAML or JSON", ProfileError):
            ratios: Any = parse_yaml(text)
        if isinstance(ratios, list):
            ratios = dict(enumerate(ratios))
        if not isinstance(ratios, dict) or not ratios:
            raise ProfileError("a mapping of layer names or block indices to sparsities is needed")
        units = require_layout(layout)
        return ProfileDocument(round_to_counts(units, match_ratios(units, ratios)))

    def write(self, document: ProfileDocument) -> str:
        """Return the mapping as JSON, which is YAML too."""
        profile = document.profile
        if self.by == "block":
            ratios: dict[Any, float] = dict(profile.grouped("block"))
        else:
            names = [unit.name for unit in profile.layout]
            ratios = dict(zip(names, profile.sparsities.tolist(), strict=True))
        return json.dumps(ratios, indent=2) + "\n"
