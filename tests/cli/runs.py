"""A run directory whose measurements are of its space, made without a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from sparsity_search.budget import Budget
from sparsity_search.history import Fidelity, Score
from sparsity_search.ladder import Ladder, Rung
from sparsity_search.profile import SparsityProfile
from sparsity_search.searchers.random import Random
from sparsity_search.spaces import SpaceFile, load_space
from sparsity_search.store import Store, journal
from sparsity_search.study import Limits, Study
from sparsity_search.testing.runs import TARGET, make_run, run_layout


def searched_run(folder: Path, rounds: int = 6) -> Path:
    """Write a run of random search on a toy objective; one measurement fails."""
    made = make_run(folder.with_name("made"), rounds=0, finished=False)
    folder.mkdir()
    shutil.copy(made / "run.json", folder / "run.json")
    file = load_space("per_linear")
    assert isinstance(file, SpaceFile)
    space = file.build(run_layout(), Budget(TARGET), {})
    weights = np.exp(np.random.default_rng(0).normal(0, 1.5, len(space.layout)))
    calls = iter(range(10**6))

    def objective(
        profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        value = float(weights @ np.exp(3 * profile.sparsities)) / fidelity.tokens
        return Score(float("nan") if next(calls) == 5 else value, (value,))

    Study(
        space=space,
        searcher=Random(spread=2.0),
        objective=objective,
        ladder=Ladder(candidates=16, rungs=(Rung(512, 4), Rung(4096, 1))),
        store=Store(journal(folder / "journal.log"), "search", {"seed": 0}),
    ).run(Limits(rounds=rounds))
    return folder
