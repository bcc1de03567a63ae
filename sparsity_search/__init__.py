"""Finds how much to prune each layer of a language model.

The names below are the public API. They load when they are first used, so that importing the
package, or its torch-free half, stays cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ALLOCATORS": "registry",
    "Bounds": "budget",
    "Budget": "budget",
    "EVALUATORS": "registry",
    "Ladder": "ladder",
    "Layout": "layout",
    "Limits": "study",
    "PRUNERS": "registry",
    "PrunableModel": "models.prunable",
    "Request": "data.sequences",
    "Rung": "ladder",
    "SEARCHERS": "registry",
    "SearchSpace": "space",
    "SparsityProfile": "profile",
    "SparsitySearchError": "errors",
    "Study": "study",
    "UNITS": "registry",
    "Unit": "layout",
    "draw": "data.sequences",
    "load_config": "config",
    "load_model": "models.loading",
    "load_space": "spaces",
    "materialise": "models.materialise",
    "plan": "models.materialise",
    "prune_sequentially": "realise",
    "save_checkpoint": "models.saving",
    "search": "workflow.search",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
