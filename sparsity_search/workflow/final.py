"""The end of a search: profiles rebuilt as they would be shipped, compared on unseen text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsity_search.artefacts import write_json
from sparsity_search.config import RunConfig
from sparsity_search.errors import NumericalError
from sparsity_search.evaluators.base import Evaluator, Proxy
from sparsity_search.history import History
from sparsity_search.models.saving import save_checkpoint
from sparsity_search.profile import SparsityProfile
from sparsity_search.realise import prune_sequentially
from sparsity_search.registry import EVALUATORS
from sparsity_search.workflow import rundir
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.plugins import Plugins
from sparsity_search.workflow.session import Session


def compare(
    config: RunConfig,
    plugins: Plugins,
    session: Session,
    profiles: Mapping[str, SparsityProfile],
    history: History,
    out: Path,
    monitor: Monitor,
) -> SparsityProfile:
    """Rebuild each profile sequentially, score it on the final text, and ship the best.

    Writes ``results.json``, ``profile.json``, ``profiles/`` and ``checkpoint/``.

    Args:
        config: The run's configuration.
        plugins: Its plugins.
        session: Model and text.
        profiles: What to compare, by name; all of one sparsity.
        history: What was measured, for the record.
        out: The run directory.
        monitor: Watches the job.

    Returns:
        The profile of the checkpoint: the one with the best score.
    """
    judge = _Judge(plugins.evaluator, session, monitor)
    rows = [judge.row("dense", None)]
    best: dict[str, Tensor] = {}
    shipped, best_score, notes = "", math.inf, []
    for name, profile in profiles.items():
        with session.subject.preserved():
            with monitor.stage(f"rebuild {name}", len(session.subject.blocks)) as advance:
                told = prune_sequentially(
                    session.subject,
                    profile,
                    plugins.pruner,
                    session.text["calibration"],
                    seed=config.study.seed,
                    on_block=advance,
                )
            row = judge.row(name, profile)
            if row["score"] is not None and row["score"] < best_score:
                shipped, best_score, notes = name, row["score"], told
                best = {n: view.read().clone() for n, view in session.subject.views.items()}
        rows.append(row)
        write_json(out / "profiles" / f"{name}.json", profile.to_json())
    if not shipped:
        raise NumericalError("no profile gives a finite score: the sparsity is too high")
    with session.subject.preserved(), monitor.stage("save checkpoint"):
        for name, weight in best.items():
            session.subject.views[name].write(weight)
        save_checkpoint(session.loaded.model, session.loaded.tokenizer, out / "checkpoint")
    profile = profiles[shipped]
    write_json(out / rundir.PROFILE, _profile_json(config, session, profile))
    write_json(out / rundir.RESULTS, _results(config, rows, shipped, history, notes, monitor))
    return profile


class _Judge:
    """Scores the model as it is on the final text."""

    def __init__(self, evaluator: Evaluator, session: Session, monitor: Monitor) -> None:
        self._session = session
        self._monitor = monitor
        final = session.text["final"]
        with monitor.stage("bind final text"):
            self._proxies: dict[str, Proxy] = {
                "score": evaluator.bind(session.loaded.model, final),
                "perplexity": EVALUATORS.create("perplexity").bind(session.loaded.model, final),
            }

    def row(self, name: str, profile: SparsityProfile | None) -> dict[str, Any]:
        """Return one row of the table; numbers that are not finite become None."""
        profile = profile or self._session.subject.zeros()
        row: dict[str, Any] = {"name": name}
        rows = range(len(self._session.text["final"]))
        with self._monitor.stage(f"score {name}"):
            for key, proxy in self._proxies.items():
                value = proxy.score(self._session.loaded.model, rows).value
                row[key] = value if math.isfinite(value) else None
        return {**row, "sparsity": profile.sparsity, "removed": profile.n_removed}


def _profile_json(config: RunConfig, session: Session, profile: SparsityProfile) -> dict[str, Any]:
    """Return ``profile.json``: nothing in it depends on when or how fast it was made."""
    return {
        **profile.to_json(),
        "target": config.budget.target,
        "model": session.describe_model(),
        "pruner": config.pruner.model_dump(mode="json"),
        "seed": config.study.seed,
        "text": session.describe_text(),
    }


def _results(
    config: RunConfig,
    rows: list[dict[str, Any]],
    shipped: str,
    history: History,
    notes: list[str],
    monitor: Monitor,
) -> dict[str, Any]:
    chosen = next(row for row in rows if row["name"] == shipped)
    return {
        "format": rundir.FORMAT,
        "evaluator": config.evaluator.name,
        "target": config.budget.target,
        "shipped": shipped,
        "removed": chosen["removed"],
        "rows": rows,
        "search": {
            "rounds": max(0, len(history.winners) - 1),
            "measurements": len(history.measurements),
            "seconds": max((m.elapsed for m in history.measurements), default=0.0),
        },
        "seconds": dict(monitor.seconds),
        "notes": notes,
    }
