"""The end of a search: profiles rebuilt as they would be shipped, compared on unseen text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.stages import StagesResult
from sparsity_search.errors import NumericalError
from sparsity_search.interfaces.evaluator import split_batches
from sparsity_search.models.io.saving import write_checkpoint
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS
from sparsity_search.report.card import format_card
from sparsity_search.runs.directory import PROFILE
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.utils.files import atomic_folder


def ship(
    job: SearchJob, profiles: Mapping[str, SparsityProfile], searched: StagesResult
) -> SparsityProfile:
    """Rebuild each profile sequentially, score it on the final text, and ship the best.

    Writes ``profiles/``, ``checkpoint/`` with its profile, ``profile.json`` and, at last,
    ``results.json``. While they are replaced there are no results, so that the run counts as
    unfinished.

    Args:
        job: The search.
        profiles: Profiles to compare, by name; all within one budget.
        searched: Outcome of the search, for the record.

    Returns:
        The profile of the checkpoint: the one with the best score.

    Raises:
        NumericalError: No profile has a finite score.
    """
    subject, directory = job.session.subject, job.directory
    judge = _Judge(job)
    rows = [judge.row("dense", subject.zeros())]
    shipped = _Shipped()
    for name, profile in profiles.items():
        with subject.preserved():
            notes = _rebuild(job, name, profile)
            row = judge.row(name, profile)
            if row["score"] is not None and row["score"] < shipped.score:
                shipped = _Shipped(name, row["score"], subject.snapshot(), notes)
        rows.append(row)
    if not shipped.name:
        raise NumericalError("no profile gives a finite score: the sparsity is too high")
    profile = profiles[shipped.name]
    facts = _profile_json(job, profile)
    card = format_card(
        profile, {**facts, "evaluator": job.config.evaluator.name}, rows, shipped.name
    )
    directory.withdraw_results()
    for name, other in profiles.items():
        directory.write_profile(name, other)
    with (
        job.monitor.step("save checkpoint"),
        subject.preserved(),
        atomic_folder(directory.checkpoint_folder) as folder,
    ):
        for name, weight in shipped.weights.items():
            subject.views[name].write(weight)
        loaded = job.session.loaded
        write_checkpoint(
            prepare_for_saving(subject), loaded.tokenizer, folder, base=loaded, card=card
        )
        PROFILE_JSON.write(folder / PROFILE, facts)
    PROFILE_JSON.write(directory.profile_file, facts)
    directory.write_results(_results(job, rows, shipped, searched))
    return profile


@dataclass(frozen=True)
class _Shipped:
    """The best profile so far, as rebuilt."""

    name: str = ""
    score: float = math.inf
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Sequence[str] = ()


def _rebuild(job: SearchJob, name: str, profile: SparsityProfile) -> list[str]:
    subject = job.session.subject
    with job.monitor.step(f"rebuild {name}", len(subject.blocks)) as advance:
        return prune_sequentially(
            subject,
            profile,
            job.plugins.final,
            job.session.text["calibration"],
            seed=job.config.study.seed,
            on_block=advance,
        )


class _Judge:
    """Scores the model as it is on the final text."""

    def __init__(self, job: SearchJob) -> None:
        self._space = job.space
        self._subject = job.session.subject
        self._monitor = job.monitor
        self._limit = job.config.supernet.prefix_mib * 2**20
        text, own = job.session.text, job.plugins.evaluator.own_data()
        n_rows, length = text["final"].shape
        # of an evaluator's own data, the rows that the search did not see
        first = 0 if own is None else job.pool[0]
        model = job.session.loaded.model
        self._batches = [
            (batch, [first + row for row in batch])
            for batch in split_batches(model, range(n_rows), length)
        ]
        with self._monitor.step("bind final text"):
            self._proxies = {
                key: evaluator.bind(model, text["final"], job.session.loaded.tokenizer)
                for key, evaluator in {
                    "score": job.plugins.evaluator,
                    "perplexity": EVALUATORS.create("perplexity"),
                }.items()
            }

    def row(self, name: str, profile: SparsityProfile) -> dict[str, Any]:
        """Return one row of the table; numbers that are not finite become None."""
        row: dict[str, Any] = {"name": name}
        with self._monitor.step(f"score {name}"):
            for key, value in self._scores(profile).items():
                row[key] = value if math.isfinite(value) else None
        removed = {"sparsity": profile.sparsity, "removed": profile.n_removed}
        return {**row, **removed, **_saving_facts(self._space, profile)}

    def _scores(self, profile: SparsityProfile) -> dict[str, float]:
        """Return the score of each proxy; they share the passes through the text."""
        parts: dict[str, list[float]] = {key: [] for key in self._proxies}
        for of_text, of_evaluator in self._batches:
            rows = {"score": of_evaluator, "perplexity": of_text}
            # of this batch alone: nothing is shared with others, and counts are not weights
            with PrefixCache(self._subject, self._limit).at(profile.states) as model:
                for key, proxy in self._proxies.items():
                    parts[key] += proxy.score(model, rows[key]).parts
        return {key: proxy.combine(parts[key]).value for key, proxy in self._proxies.items()}


def _saving_facts(space: SearchSpace, profile: SparsityProfile) -> dict[str, float]:
    """Return the fraction of the dense units' cost that a profile saves, if the budget is that."""
    if space.in_weights:
        return {}
    return {"saving": int(space.saved(profile).sum()) / space.layout.n_weights}


def _budget_facts(job: SearchJob) -> dict[str, float]:
    """Return the budget: a sparsity, or a saving."""
    key = "target" if job.space.in_weights else "target_saving"
    return {key: job.space.budget.target}


def _profile_json(job: SearchJob, profile: SparsityProfile) -> dict[str, Any]:
    """Return ``profile.json``: nothing in it depends on when or how fast it was made."""
    return {
        **profile.to_json(),
        **_budget_facts(job),
        **_saving_facts(job.space, profile),
        "model": job.session.model_facts,
        "removes": job.session.subject.units,
        "pruner": (job.config.finalise or job.config.pruner).model_dump(mode="json"),
        "seed": job.config.study.seed,
        "text": job.session.text_facts,
    }


def _results(
    job: SearchJob, rows: list[dict[str, Any]], shipped: _Shipped, searched: StagesResult
) -> dict[str, Any]:
    histories = searched.histories
    return {
        "evaluator": job.config.evaluator.name,
        **_budget_facts(job),
        "shipped": shipped.name,
        "rows": rows,
        "search": {
            "rounds": sum(max(0, len(history.winners) - 1) for history in histories),
            "measurements": sum(len(history.measurements) for history in histories),
            "seconds": sum(
                max((m.elapsed for m in history.measurements), default=0.0)
                for history in histories
            ),
            **({} if searched.parameters is None else {"parameters": searched.parameters}),
        },
        "seconds": dict(job.monitor.seconds),
        "notes": [*searched.notes, *shipped.notes],
    }
