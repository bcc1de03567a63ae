"""Profiles from scores that were measured before: no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_allocator
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import Allocation
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import PROFILE_JSON
from sparsity_search.profiles.scores import Scores
from sparsity_search.registry import ALLOCATORS, describe
from sparsity_search.runs.scores import load_scores
from sparsity_search.spaces.files import bounds_of

#: Facts about the scores that a profile repeats.
FACTS = ("model", "removes", "pruner", "text", "sensitivity")


def solve(
    config: RunConfig,
    name: str,
    scores_file: Path,
    targets: Sequence[float],
    out: Path,
    *,
    monitor: Monitor | None = None,
) -> dict[Path, Allocation]:
    """Solve scores for one budget or several, and write the profiles.

    Args:
        config: Bounds, and the allocator's settings; nothing else of it is read.
        name: An allocator that solves scores.
        scores_file: Scores that `save_scores` wrote.
        targets: Global sparsities.
        out: The file to write, or a folder: for several budgets, or if it is one already.
        monitor: Watches the job.

    Returns:
        The allocations by the file that they were written to.

    Raises:
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    budgets = [Budget(target) for target in targets]
    files = _name_files(out, targets)
    scores = load_scores(scores_file)
    plugin = _build_solver(config, name, scores.facts)
    bounds = bounds_of(scores.layout, config.budget.bounds)
    for budget in budgets:
        plugin.check(scores.layout, budget, bounds)
    found = {}
    with monitor.step(f"solve {name}", len(budgets)) as advance:
        for file, budget in zip(files, budgets, strict=True):
            found[file] = plugin.solve(scores, budget, bounds)
            advance()
    for (file, allocation), budget in zip(found.items(), budgets, strict=True):
        PROFILE_JSON.write(file, _describe(plugin, scores, budget, allocation))
    return found


def _name_files(out: Path, targets: Sequence[float]) -> list[Path]:
    """Return the file of each target.

    Raises:
        ConfigError: There is no target, or one twice, or several and ``out`` is a file.
    """
    if not targets or len(set(targets)) != len(targets):
        raise ConfigError("--sparsity needs one sparsity or several different ones")
    if len(targets) == 1 and not out.is_dir():
        return [out]
    if out.is_file() or out.suffix == ".json":
        raise ConfigError(f"--out {out} is a file; name a folder for several sparsities")
    return [out / f"profile-{target!r}.json" for target in targets]


def _build_solver(config: RunConfig, name: str, facts: Mapping[str, Any]) -> ScoredAllocator:
    """Return the allocator with the plugins and seed of the scores, unless they are set.

    Raises:
        UnknownNameError: There is no such allocator.
        ConfigError: It does not solve scores, or refuses its settings.
    """
    if not issubclass(ALLOCATORS.get(name), ScoredAllocator):
        raise ConfigError(f"{name!r} does not solve scores: choose knapsack, greedy or lagrangian")
    measured = {key: facts[key] for key in ("sensitivity", "pruner", "seed") if key in facts}
    allocators = {**config.allocators, name: {**measured, **config.allocators.get(name, {})}}
    found = build_allocator(config.model_copy(update={"allocators": allocators}), name)
    assert isinstance(found, ScoredAllocator)
    return found


def _describe(
    plugin: ScoredAllocator, scores: Scores, budget: Budget, allocation: Allocation
) -> dict[str, Any]:
    """Return a profile as a JSON object, with its origin."""
    return {
        **allocation.profile.to_json(),
        "target": budget.target,
        **{key: scores.facts[key] for key in FACTS if key in scores.facts},
        "allocator": describe(plugin),
        "notes": list(allocation.notes),
    }
