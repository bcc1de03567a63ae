"""The end of a search: the best candidate as a checkpoint, and the record of the job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.stages import StagesResult
from sparsity_search.errors import NumericalError
from sparsity_search.models.io.saving import write_checkpoint
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.report.card import format_card
from sparsity_search.runs.directory import PROFILE
from sparsity_search.runs.trail import StepRecord
from sparsity_search.utils.files import atomic_folder
from sparsity_search.workflow.search.judge import Verdict, list_saving
from sparsity_search.workflow.search.steps import PlanRun


def ship(run: PlanRun) -> SparsityProfile:
    """Write the best candidate: ``checkpoint/`` with its profile, ``profile.json``, the record.

    While they are replaced there are no results, so that the run counts as unfinished.

    Args:
        run: The plan, after its steps.

    Returns:
        The profile of the checkpoint.

    Raises:
        NumericalError: No candidate has a finite score.
    """
    job, best = run.job, run.best
    if not math.isfinite(Verdict(best.row, best.parts).score):
        raise NumericalError("no profile gives a finite score: the sparsity is too high")
    subject, directory = job.session.subject, job.directory
    pruned = run.read_best()
    rows = [dict(run.dense.row), *map(_list_figures, run.records)]
    facts = _profile_json(run, best)
    named = {**facts, "evaluator": job.config.evaluator.name}
    card = format_card(best.profile, named, rows, best.name)
    directory.withdraw_results()
    with (
        job.monitor.step("save checkpoint"),
        subject.preserved(),
        atomic_folder(directory.checkpoint_folder) as folder,
    ):
        for name, weight in pruned.weights.items():
            subject.views[name].write(weight)
        loaded = job.session.loaded
        write_checkpoint(
            prepare_for_saving(subject), loaded.tokenizer, folder, base=loaded, card=card
        )
        PROFILE_JSON.write(folder / PROFILE, facts)
    PROFILE_JSON.write(directory.profile_file, facts)
    directory.write_results(_results(run, rows))
    run.trail.keep(run.records, run.seconds)
    return best.profile


def _list_figures(record: StepRecord) -> dict[str, Any]:
    """Return the row of a candidate in the final comparison."""
    return {**record.row, "profile": record.profile.digest, "pruner": dict(record.pruner)}


def _budget_facts(job: SearchJob) -> dict[str, float]:
    """Return the budget: a sparsity, or a saving."""
    key = "target" if job.space.in_weights else "target_saving"
    return {key: job.space.budget.target}


def _profile_json(run: PlanRun, best: StepRecord) -> dict[str, Any]:
    """Return ``profile.json``: nothing in it depends on when or how fast it was made."""
    job = run.job
    return {
        **best.profile.to_json(),
        **_budget_facts(job),
        **list_saving(job.space, best.profile),
        "model": job.session.model_facts,
        "removes": job.session.subject.units,
        "pruner": dict(best.pruner),
        "seed": job.config.study.seed,
        "text": job.session.text_facts,
    }


def _results(run: PlanRun, rows: list[dict[str, Any]]) -> dict[str, Any]:
    job, searched = run.job, run.searched
    notes = [] if searched is None else list(searched.notes)
    return {
        "evaluator": job.config.evaluator.name,
        **_budget_facts(job),
        "shipped": run.best.name,
        "rows": rows,
        "search": _summarise_search(searched),
        "seconds": dict(job.monitor.seconds),
        "notes": [*notes, *run.read_best().notes, *run.skipped],
    }


def _summarise_search(searched: StagesResult | None) -> Mapping[str, Any]:
    histories = () if searched is None else searched.histories
    parameters = None if searched is None else searched.parameters
    return {
        "rounds": sum(max(0, len(history.winners) - 1) for history in histories),
        "measurements": sum(len(history.measurements) for history in histories),
        "seconds": sum(
            max((m.elapsed for m in history.measurements), default=0.0) for history in histories
        ),
        **({} if parameters is None else {"parameters": parameters}),
    }
