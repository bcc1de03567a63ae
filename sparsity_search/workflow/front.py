"""One search for many budgets: neighbours start each other, and leave a front of profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Budget
from sparsity_search.report.front import write_front
from sparsity_search.report.pages import can_draw_pages
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.workflow.search import search


def search_front(
    config: RunConfig,
    targets: Sequence[float],
    out: Path,
    *,
    of: Literal["sparsity", "saving"] = "sparsity",
    command: Sequence[str] = (),
    monitor: Monitor | None = None,
) -> bool:
    """Search a profile for each budget, from the least to the greatest.

    Each search is a run of its own in a folder of ``out``. In addition to its initial allocators,
    it starts from the result for the budget before, shifted to its own.

    Args:
        config: Configuration of all searches; its time is shared among them.
        targets: Global sparsities, or savings.
        out: The folder of the runs and of the front.
        of: Which of the two.
        command: The command line, for the record.
        monitor: Watches the job.

    Returns:
        Whether all budgets were searched; else the monitor stopped it.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    monitor = monitor or Monitor()
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if len(targets) < 2 or len({_name_run(target) for target in targets}) != len(targets):
        raise ConfigError(f"a front needs at least two different values of {of}, e.g. 0.5,0.6,0.7")
    budgets = [Budget(target) for target in sorted(targets)]
    can_draw_pages()  # warns before the work if it cannot
    before: list[str] = []
    for number, budget in enumerate(budgets, start=1):
        monitor.at_step(f"{of} {budget.target:.2%}", number, len(budgets), math.inf)
        run = out / _name_run(budget.target)
        own = config.model_copy(
            update={"budget": config.budget.model_copy(update={of: budget.target})}
        )
        search(_adapt(own, before, len(budgets)), run, command=command, monitor=monitor)
        before = [str(RunDirectory(run).profile_file)]
        write_front(out, config.study.storage)
        if monitor.stopped():
            return False
    return True


def _name_run(target: float) -> str:
    """Return the name of a budget's folder."""
    return f"{target:g}"


def _adapt(config: RunConfig, before: list[str], n_budgets: int) -> RunConfig:
    """Return the configuration of one of several searches: its starts, and its share of time."""
    study, initial = config.study, [*config.initial, *before]
    if study.time_limit is not None:
        study = study.model_copy(update={"minutes": study.time_limit / n_budgets})
    return config.model_copy(update={"study": study, "initial": initial})
