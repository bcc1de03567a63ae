"""Search for layer-wise sparsity profiles of language models.

The names below are the public API. They are imported on first use, so that the import of the
package, or of its torch-free half, stays cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ALLOCATORS": "registry",
    "Bounds": "profiles.budget",
    "Budget": "profiles.budget",
    "EVALUATORS": "registry",
    "Ladder": "trials.ladder",
    "Layout": "profiles.layout",
    "Limits": "study.study",
    "PRUNERS": "registry",
    "PrunableModel": "models.anatomy.prunable",
    "Request": "data.sequences",
    "Rung": "trials.ladder",
    "SEARCHERS": "registry",
    "SearchSpace": "spaces.levels",
    "SparsityProfile": "profiles.profile",
    "SparsitySearchError": "errors",
    "Study": "study.study",
    "UNITS": "registry",
    "Unit": "profiles.layout",
    "draw": "data.sequences",
    "load_config": "config.load",
    "load_model": "models.io.loading",
    "load_space": "spaces.files",
    "materialise": "models.surgery.materialise",
    "plan": "models.surgery.materialise",
    "prune_sequentially": "pruning.sequential",
    "save_checkpoint": "models.io.saving",
    "search": "workflow.search",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
