"""Many allocators under equal conditions: one budget, one text, one pruner, one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session, request_search_text
from sparsity_search.errors import ConfigError
from sparsity_search.pruning.patterns import check_zeros
from sparsity_search.report.comparison import write_tables
from sparsity_search.report.comparison_page import write_comparison
from sparsity_search.report.pages import can_draw_pages
from sparsity_search.runs.comparison import ComparisonFolder
from sparsity_search.runs.redact import redact
from sparsity_search.runs.versions import join_versions
from sparsity_search.spaces.files import bounds_of
from sparsity_search.utils.files import check_fingerprint, lock_folder
from sparsity_search.workflow.compare.cases import Case, Plan
from sparsity_search.workflow.compare.rows import Bench, name_text

#: Sequences of the text for perplexity, unless the configuration has a number.
FINAL_SEQUENCES = 40

#: Sections of the configuration that every row depends on.
_SHARED = ("model.", "data.", "budget.bounds", "study.seed")


def compare(
    plan: Plan, out: Path, *, command: Sequence[str] = (), monitor: Monitor | None = None
) -> None:
    """Measure every case of a plan, and leave a table; called again, it goes on where it was.

    A case that is measured is kept in a file of its own, so a later call may add allocators,
    pruners, sparsities and seeds. A method that refuses a case becomes a row with its error.

    Args:
        plan: The allocators, pruners, sparsities and seeds to compare.
        out: The folder of the comparison.
        command: The command line, for the record.
        monitor: Watches the job, and may stop it between rows.

    Raises:
        RunMismatchError: The folder holds a comparison, or a row, made in another way.
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    monitor, with_report = monitor or Monitor(), can_draw_pages()
    cases, kind = plan.list_cases(), plan.choose_kind()
    config, folder = fill_defaults(plan.config), ComparisonFolder(out)
    _check_folder(folder, config, cases)
    requests = _request_text(config, plan.seed_range)
    seed, kept = config.study.seed, config.data.statistics
    session = open_session(config.model, requests, seed, monitor, units=kind, statistics=kept)
    layout = session.subject.layout
    bounds = bounds_of(layout, config.budget.bounds)
    for case in cases:
        case.budget.check(layout, bounds)
        check_zeros(session.subject, case.pruning)
    bench = Bench(session, bounds, folder, config.data.refresh, monitor)
    with lock_folder(out):
        _begin(bench, config, cases, command)
        try:
            for case in cases:
                if monitor.stopped():
                    return
                if not folder.row_file(case.key).exists():
                    folder.write_row(bench.measure_row(case))
                    write_tables(out)
        finally:
            if with_report:
                write_comparison(out)


def fill_defaults(config: RunConfig) -> RunConfig:
    """Return a configuration with the size of a comparison's text where it has none."""
    if "final_sequences" in config.data.model_fields_set:
        return config
    data = config.data.model_copy(update={"final_sequences": FINAL_SEQUENCES})
    return config.model_copy(update={"data": data})


def _request_text(config: RunConfig, seeds: Sequence[int]) -> list[Request]:
    """Return the text for perplexity first: then more seeds leave all other pieces as they are."""
    calibration, _, final = request_search_text(config.data)
    return [final, *(replace(calibration, purpose=name_text(seed)) for seed in seeds)]


def _identify(config: RunConfig) -> dict[str, Any]:
    return {key: v for key, v in config.identity().items() if key.startswith(_SHARED)}


def _check_folder(folder: ComparisonFolder, config: RunConfig, cases: Sequence[Case]) -> None:
    """Check, before any work, that a comparison may start or go on in a folder.

    Raises:
        ConfigError: The folder holds something else.
        RunMismatchError: It holds a comparison, or rows, of another configuration.
    """
    out = folder.path
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if not folder.begun:
        if out.is_dir() and any(not file.name.startswith(".") for file in out.iterdir()):
            raise ConfigError(f"--out {out} is not empty and holds no comparison; name another")
        return
    stored = folder.read_facts().get("identity", {})
    check_fingerprint(stored, _identify(config), f"the comparison in {out}")
    for case in cases:
        for file, read, key in (
            (folder.row_file(case.key), folder.read_row, case.key),
            (folder.profile_file(case.profile_key), folder.read_profile, case.profile_key),
        ):
            if file.exists():
                made = read(key).get("fingerprint", {})
                now = {part: case.fingerprint.get(part) for part in made or case.fingerprint}
                check_fingerprint(made, now, str(file))


def _begin(bench: Bench, config: RunConfig, cases: Sequence[Case], command: Sequence[str]) -> None:
    """Write ``compare.json``, or add to the one that is there.

    Raises:
        RunMismatchError: Model or text are not those of the comparison that is there.
    """
    folder = bench.folder
    stored = folder.read_facts() if folder.begun else {}
    facts = _describe(bench, config, command)
    old, new = stored.get("fingerprint", {}), facts["fingerprint"]
    seeds = {key for key in old.keys() ^ new.keys() if key.startswith("text.")}  # of one call
    before, now = ({k: v for k, v in each.items() if k not in seeds} for each in (old, new))
    if stored:
        check_fingerprint(before, now, f"the comparison in {folder.path}")
    facts["fingerprint"] = {**old, **new}
    facts["text"] = {**stored.get("text", {}), **facts["text"]}
    facts["created"] = stored.get("created", facts["created"])
    facts["versions"] = join_versions(stored.get("versions", {}), facts["versions"])
    facts["rows"] = list(dict.fromkeys([*stored.get("rows", []), *(case.key for case in cases)]))
    if (dense := stored.get("dense")) is None:
        with bench.monitor.step("score dense"):
            dense = bench.measure_perplexity()
    folder.write_facts({**facts, "dense": dense, "layout": bench.layout.to_json()})


def _describe(bench: Bench, config: RunConfig, command: Sequence[str]) -> dict[str, Any]:
    """Return the identity and the origin of a comparison, with credentials hidden."""
    session, model = bench.session, bench.session.loaded.model
    facts = {
        **session.describe_origin(command),
        "identity": _identify(config),
        "fingerprint": {
            **session.loaded.identity,
            "layout": bench.layout.digest,
            "dtype": str(model.dtype),
            "saved_as": str(session.loaded.saved_as),
            "device": model.device.type,
            **{f"text.{p}": entry["digest"] for p, entry in session.text_facts.items()},
        },
        "model": session.model_facts,
        "removes": session.subject.units,
        "text": session.text_facts,
    }
    hidden: dict[str, Any] = redact(facts)
    return hidden
