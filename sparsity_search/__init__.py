"""Search for layer-wise sparsity profiles of language models.

The names below are the public API. They are imported on first use, so that the import of the
package, or of its torch-free half, stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` returns, for type checkers
    from sparsity_search.config.load import load_config as load_config
    from sparsity_search.config.schema import RunConfig as RunConfig
    from sparsity_search.data.sequences import Request as Request
    from sparsity_search.data.sequences import draw as draw
    from sparsity_search.engine.monitor import Monitor as Monitor
    from sparsity_search.errors import SparsitySearchError as SparsitySearchError
    from sparsity_search.interfaces.allocator import (
        Allocation as Allocation,
    )
    from sparsity_search.interfaces.allocator import (
        AllocationProblem as AllocationProblem,
    )
    from sparsity_search.interfaces.allocator import (
        Allocator as Allocator,
    )
    from sparsity_search.interfaces.evaluator import Evaluator as Evaluator
    from sparsity_search.interfaces.evaluator import Proxy as Proxy
    from sparsity_search.interfaces.pruner import Pruner as Pruner
    from sparsity_search.interfaces.recovery import Recovery as Recovery
    from sparsity_search.interfaces.recovery import RecoveryProblem as RecoveryProblem
    from sparsity_search.interfaces.searcher import Searcher as Searcher
    from sparsity_search.models.anatomy.prunable import PrunableModel as PrunableModel
    from sparsity_search.models.anatomy.unit_kind import UnitKind
    from sparsity_search.models.io.loading import load_model as load_model
    from sparsity_search.models.io.saving import save_checkpoint as save_checkpoint
    from sparsity_search.models.surgery.materialise import materialise as materialise
    from sparsity_search.models.surgery.materialise import plan as plan
    from sparsity_search.profiles.budget import Bounds as Bounds
    from sparsity_search.profiles.budget import Budget as Budget
    from sparsity_search.profiles.layout import Layout as Layout
    from sparsity_search.profiles.layout import Unit as Unit
    from sparsity_search.profiles.profile import SparsityProfile as SparsityProfile
    from sparsity_search.pruning.sequential import prune_sequentially as prune_sequentially
    from sparsity_search.recoveries.bases.mask_keeper import MaskKeeper as MaskKeeper
    from sparsity_search.registry import Registry
    from sparsity_search.runs.record import RunRecord as RunRecord
    from sparsity_search.runs.record import load_run as load_run
    from sparsity_search.spaces.files import load_space as load_space
    from sparsity_search.spaces.levels import SearchSpace as SearchSpace
    from sparsity_search.study.study import Limits as Limits
    from sparsity_search.study.study import Study as Study
    from sparsity_search.trials.history import (
        History as History,
    )
    from sparsity_search.trials.history import (
        Measurement as Measurement,
    )
    from sparsity_search.trials.history import (
        Score as Score,
    )
    from sparsity_search.trials.ladder import Ladder as Ladder
    from sparsity_search.trials.ladder import Rung as Rung
    from sparsity_search.workflow.allocate import allocate as allocate
    from sparsity_search.workflow.compare import compare as compare
    from sparsity_search.workflow.evaluate import evaluate as evaluate
    from sparsity_search.workflow.merge_adapter import merge_adapter as merge_adapter
    from sparsity_search.workflow.prune import prune as prune
    from sparsity_search.workflow.recover import recover as recover
    from sparsity_search.workflow.search import search as search

    ALLOCATORS: Registry[Allocator]
    EVALUATORS: Registry[Evaluator]
    PRUNERS: Registry[Pruner]
    RECOVERIES: Registry[Recovery]
    SEARCHERS: Registry[Searcher]
    UNITS: Registry[UnitKind]

__version__ = "0.1.0"

_HOME = {
    "ALLOCATORS": "registry",
    "Allocation": "interfaces.allocator",
    "AllocationProblem": "interfaces.allocator",
    "Allocator": "interfaces.allocator",
    "Bounds": "profiles.budget",
    "Budget": "profiles.budget",
    "EVALUATORS": "registry",
    "Evaluator": "interfaces.evaluator",
    "History": "trials.history",
    "Ladder": "trials.ladder",
    "Layout": "profiles.layout",
    "Limits": "study.study",
    "MaskKeeper": "recoveries.bases.mask_keeper",
    "Measurement": "trials.history",
    "Monitor": "engine.monitor",
    "PRUNERS": "registry",
    "Proxy": "interfaces.evaluator",
    "PrunableModel": "models.anatomy.prunable",
    "Pruner": "interfaces.pruner",
    "RECOVERIES": "registry",
    "Recovery": "interfaces.recovery",
    "RecoveryProblem": "interfaces.recovery",
    "Request": "data.sequences",
    "RunConfig": "config.schema",
    "RunRecord": "runs.record",
    "Rung": "trials.ladder",
    "SEARCHERS": "registry",
    "Score": "trials.history",
    "SearchSpace": "spaces.levels",
    "Searcher": "interfaces.searcher",
    "SparsityProfile": "profiles.profile",
    "SparsitySearchError": "errors",
    "Study": "study.study",
    "UNITS": "registry",
    "Unit": "profiles.layout",
    "allocate": "workflow.allocate",
    "compare": "workflow.compare",
    "draw": "data.sequences",
    "evaluate": "workflow.evaluate",
    "load_config": "config.load",
    "load_model": "models.io.loading",
    "load_run": "runs.record",
    "load_space": "spaces.files",
    "materialise": "models.surgery.materialise",
    "merge_adapter": "workflow.merge_adapter",
    "plan": "models.surgery.materialise",
    "prune": "workflow.prune",
    "prune_sequentially": "pruning.sequential",
    "recover": "workflow.recover",
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
