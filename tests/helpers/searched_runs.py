"""A run directory whose measurements are of its space, made without a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.stage_spaces import SEARCHED
from sparsity_search.searchers.random import RandomSearcher
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.runs import TARGET, build_run_layout, make_run
from sparsity_search.trials.history import Fidelity, Score
from sparsity_search.trials.ladder import Ladder, Rung
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import Store


def searched_run(folder: Path, rounds: int = 6, stages: int = 1) -> Path:
    """Write a run of random search on a toy objective; one measurement fails.

    A later stage lies around the best of the one before, and its scores are ten times as high.
    """
    made = make_run(folder.with_name("made"), rounds=0, finished=False)
    folder.mkdir()
    shutil.copy(made / "run.json", folder / "run.json")
    file = load_space("per_linear")
    assert isinstance(file, SpaceFile)
    space = file.build(build_run_layout(), Budget(TARGET), {})
    weights = np.exp(np.random.default_rng(0).normal(0, 1.5, len(space.layout)))
    calls, names = iter(range(10**6)), ["search"]

    def objective(
        profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        scale = 10 ** len(names) / fidelity.tokens
        value = float(weights @ np.exp(3 * profile.sparsities)) * scale
        return Score(float("nan") if next(calls) == 5 else value, (value,))

    def search(space: SearchSpace) -> SparsityProfile:
        history = Study(
            space=space,
            searcher=RandomSearcher(spread=2.0),
            objective=objective,
            ladder=Ladder(candidates=16, rungs=(Rung(512, 4), Rung(4096, 1))),
            store=Store(open_journal(folder / "journal.log"), names[-1], {"seed": 0}),
        ).run(Limits(rounds=rounds))
        return space.profile(history.survivors[0])

    found, starts = search(space), [{"uniform": space.base}]
    for stage in range(2, stages + 1):
        space = space.refined(found)
        names.append(f"search-stage{stage}-{space.digest}")
        starts.append({SEARCHED: found})
        found = search(space)
    RunDirectory(folder).write_stages(names, starts)
    return folder
