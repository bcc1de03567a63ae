"""Recipes for llm-compressor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from sparsity_search.errors import ConfigError, ProfileError, show_value, told_of
from sparsity_search.formats.bases.layers import (
    check_single_weights,
    match_ratios,
    require_layout,
    round_to_counts,
    sum_rows,
)
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.utils.reading import parse_yaml

Modifier = Literal["SparseGPTModifier", "WandaPruningModifier"]
_MODIFIERS = get_args(Modifier)
#: Matrix of fused experts → the linear layers into which the tool splits it.
_SPLIT = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}


@dataclass(frozen=True, kw_only=True)
class LlmCompressorFormat(Format):
    """A recipe for llm-compressor: a pruning modifier for each sparsity, with its layers.

    Layers of one sparsity share a modifier. Modifiers of one name cannot stand in one mapping, so
    each has a group of its own. The rows of a fused projection are one layer there. Fused experts
    have the names of the linear layers into which the tool splits them before it prunes:
    ``gate_up_proj`` becomes ``gate_proj`` and ``up_proj``, with one sparsity.

    Args:
        modifier: ``SparseGPTModifier`` or ``WandaPruningModifier``.
        mask_structure: Which weights compete: ``"0:0"`` (any), or an N:M pattern.
    """

    modifier: Modifier = "SparseGPTModifier"
    mask_structure: str = "0:0"

    def __post_init__(self) -> None:
        if self.modifier not in _MODIFIERS:
            raise ConfigError(f"modifier must be {' or '.join(_MODIFIERS)}, not {self.modifier!r}")
        parts = str(self.mask_structure).split(":")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise ConfigError(f"mask_structure must be N:M, not {self.mask_structure!r}")

    def read(self, text: str, layout: Layout | None = None) -> ProfileDocument:
        """Return the counts nearest to the sparsities of all pruning modifiers.

        Layers that no modifier names are an error: a recipe leaves nothing to guess.
        """
        with told_of("not a recipe", ProfileError):
            recipe = parse_yaml(text)
        ratios: dict[str, float] = {}
        for modifier in _find_modifiers(recipe):
            for target in _get_targets(modifier):
                if target in ratios:
                    raise ProfileError(f"{target} is in two modifiers of the recipe")
                ratios[target] = modifier["sparsity"]
        if not ratios:
            raise ProfileError(f"the recipe holds neither {' nor '.join(_MODIFIERS)}")
        units = require_layout(layout)
        joined = _join_layers(units, ratios)
        return ProfileDocument(round_to_counts(units, match_ratios(units, joined)))

    def write(self, document: ProfileDocument) -> str:
        """Return the recipe as YAML.

        Raises:
            ProfileError: The profile removes structures, or the tool does not split its experts.
        """
        check_single_weights(document.profile, "llm-compressor's modifiers")
        profile = sum_rows(document.profile)
        layers: dict[float, list[str]] = {}
        for unit, sparsity in zip(profile.layout, profile.sparsities.tolist(), strict=True):
            names = _list_layers(unit)
            if not names:
                raise ProfileError(
                    f"{unit.name} is no module, and llm-compressor makes none of it: leave "
                    "experts out of the profile, with --exclude where it is made"
                )
            layers.setdefault(sparsity, []).extend(names)
        stage = {
            f"pruning_{index}_modifiers": {
                self.modifier: {
                    "sparsity": sparsity,
                    "mask_structure": self.mask_structure,
                    "targets": names,
                }
            }
            for index, (sparsity, names) in enumerate(layers.items())
        }
        return yaml.safe_dump({"pruning_stage": stage}, sort_keys=False, width=99)


def _list_layers(unit: Unit) -> list[str]:
    """Return the names that a unit's layers have in the tool; none if it has no such layers."""
    if not unit.role.startswith("expert_"):
        return [unit.name]
    place, _, matrix = unit.name.rpartition(".")
    return [f"{place}.{layer}" for layer in _SPLIT.get(matrix, ())]


def _join_layers(layout: Layout, ratios: dict[str, float]) -> dict[str, float]:
    """Return ratios with those of layers that are one unit here under the unit's name.

    Raises:
        ProfileError: Such layers differ.
    """
    joined = dict(ratios)
    for unit in layout:
        layers = [] if unit.name in ratios else _list_layers(unit)
        found = {layer: joined.pop(layer) for layer in layers if layer in joined}
        if len(set(found.values())) > 1 or 0 < len(found) < len(layers):
            raise ProfileError(
                f"{unit.name} is one unit: {' and '.join(layers)} need one sparsity"
            )
        if found:
            joined[unit.name] = found[layers[0]]
    return joined


def _find_modifiers(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of all pruning modifiers, however deep in stages and groups."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in _MODIFIERS:
            if not isinstance(inner, dict) or not {"sparsity", "targets"} <= inner.keys():
                raise ProfileError(f"{key} needs both sparsity and targets to be a profile")
            yield inner
        else:
            yield from _find_modifiers(inner)


def _get_targets(modifier: dict[str, Any]) -> list[str]:
    """Return the layers of a modifier.

    Raises:
        ProfileError: They are classes or patterns, or have a list of sparsities.
    """
    found = modifier["targets"]
    targets = [found] if isinstance(found, str) else found
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ProfileError(f"targets must be names of layers, not {show_value(found)}")
    for name in targets:
        if name.startswith("re:"):
            raise ProfileError(f"targets must be names of layers, not patterns like {name!r}")
    if isinstance(modifier["sparsity"], list):
        raise ProfileError("a list of sparsities follows the order of modules: name each layer")
    return targets
