"""Tiny random models in the shapes of families of 2024 to 2026: few blocks, vocabulary 128."""

from sparsity_search.testing.families.dense import DENSE
from sparsity_search.testing.families.family import Family
from sparsity_search.testing.families.hybrid import HYBRID
from sparsity_search.testing.families.mixture import MIXTURES
from sparsity_search.testing.families.multimodal import MULTIMODAL

__all__ = ["DENSE", "FAMILIES", "HYBRID", "MIXTURES", "MULTIMODAL", "Family"]

#: All of them, by name.
FAMILIES: dict[str, Family] = {**DENSE, **HYBRID, **MIXTURES, **MULTIMODAL}
