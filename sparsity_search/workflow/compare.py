"""Many allocators under equal conditions: one budget, one text, one pruner, one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.cases import REFERENCE, Case, Plan
from sparsity_search.engine.meter import Cost, Meter
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.errors import ConfigError, ProfileError, SparsitySearchError
from sparsity_search.interfaces.allocator import Allocation
from sparsity_search.interfaces.evaluator import Proxy
from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.patterns import Pattern
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS
from sparsity_search.report.comparison import COMPARISON, FORMAT, write_tables
from sparsity_search.report.comparison_page import write_comparison
from sparsity_search.runs.redact import redact
from sparsity_search.spaces.files import bounds_of
from sparsity_search.utils.files import check_fingerprint, lock_folder, read_json, write_json

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
        plan: What to compare.
        out: The folder of the comparison.
        command: The command line, for the record.
        monitor: Watches the job, and may stop it between rows.

    Raises:
        RunMismatchError: The folder holds a comparison, or a row, made in another way.
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    cases, kind = plan.cases(), plan.units()
    config = with_defaults(plan.config)
    _check_folder(out, config, cases)
    requests = _requests(config, plan.seed_range)
    session = open_session(
        config.model,
        requests,
        config.study.seed,
        monitor,
        units=kind,
        statistics=config.data.statistics,
    )
    work = _Work(session, bounds_of(session.subject.layout, config.budget.bounds), out, monitor)
    for case in cases:
        case.budget.check(work.layout, work.bounds)
    with lock_folder(out):
        _begin(work, config, cases, command)
        try:
            for case in cases:
                if monitor.stopped():
                    return
                if not work.row_file(case).exists():
                    write_json(work.row_file(case), work.row(case))
                    write_tables(out)
        finally:
            write_comparison(out)


def with_defaults(config: RunConfig) -> RunConfig:
    """Return a configuration with the size of a comparison's text where it has none."""
    if "final_sequences" in config.data.model_fields_set:
        return config
    data = config.data.model_copy(update={"final_sequences": FINAL_SEQUENCES})
    return config.model_copy(update={"data": data})


def _purpose(seed: int) -> str:
    return f"calibration-seed{seed}"


def _requests(config: RunConfig, seeds: Sequence[int]) -> list[Request]:
    """Return the text for perplexity first: then more seeds leave all other pieces as they are."""
    data = config.data
    final = data.final_text or data.calibration
    size = (data.calibration_sequences, data.calibration_length)
    pieces = [Request(_purpose(seed), data.calibration, *size) for seed in seeds]
    return [Request("final", final, data.final_sequences, data.final_length), *pieces]


def _identity(config: RunConfig) -> dict[str, Any]:
    return {key: v for key, v in config.identity().items() if key.startswith(_SHARED)}


def _check_folder(out: Path, config: RunConfig, cases: Sequence[Case]) -> None:
    """Check, before any work, that a comparison may start or go on in a folder.

    Raises:
        ConfigError: The folder holds something else.
        RunMismatchError: It holds a comparison, or rows, of another configuration.
    """
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if not (out / COMPARISON).exists():
        if out.is_dir() and any(not file.name.startswith(".") for file in out.iterdir()):
            raise ConfigError(f"--out {out} is not empty and holds no comparison; name another")
        return
    stored = read_json(out / COMPARISON)
    check_fingerprint(stored.get("identity", {}), _identity(config), f"the comparison in {out}")
    for case in cases:
        for folder, key in (("rows", case.key), ("profiles", case.profile_key)):
            if (file := out / folder / f"{key}.json").exists():
                made = read_json(file).get("fingerprint", {})
                now = {part: case.fingerprint[part] for part in made or case.fingerprint}
                check_fingerprint(made, now, str(file))


def _begin(work: _Work, config: RunConfig, cases: Sequence[Case], command: Sequence[str]) -> None:
    """Write ``compare.json``, or add to the one that is there.

    Raises:
        RunMismatchError: Model or text are not those of the comparison that is there.
    """
    file, session = work.out / COMPARISON, work.session
    stored = read_json(file) if file.exists() else {}
    facts = _facts(work, config, command)
    old, new = stored.get("fingerprint", {}), facts["fingerprint"]
    common = old.keys() & new.keys()  # seeds that only one call has are no difference
    what = f"the comparison in {work.out}"
    check_fingerprint({k: old[k] for k in common}, {k: new[k] for k in common}, what)
    facts["fingerprint"], facts["text"] = (
        {**old, **new},
        {**stored.get("text", {}), **facts["text"]},
    )
    facts["created"] = stored.get("created", facts["created"])
    facts["rows"] = list(dict.fromkeys([*stored.get("rows", []), *(case.key for case in cases)]))
    if (dense := stored.get("dense")) is None:
        with work.monitor.stage("score dense"):
            dense = work.perplexity()
    write_json(file, {**facts, "dense": dense, "layout": session.subject.layout.to_json()})


def _facts(work: _Work, config: RunConfig, command: Sequence[str]) -> dict[str, Any]:
    """Return what identifies and explains a comparison, with credentials hidden."""
    session, model = work.session, work.session.loaded.model
    facts = {
        "format": FORMAT,
        **session.origin(command),
        "identity": _identity(config),
        "fingerprint": {
            "model": session.loaded.digest,
            "layout": work.layout.digest,
            "dtype": str(model.dtype),
            "device": model.device.type,
            **{f"text.{p}": entry["digest"] for p, entry in session.text_facts.items()},
        },
        "model": session.model_facts,
        "removes": session.subject.units,
        "text": session.text_facts,
    }
    hidden: dict[str, Any] = redact(facts)
    return hidden


@dataclass(frozen=True)
class _Work:
    """The model, and where what is measured on it goes."""

    session: Session
    bounds: Bounds
    out: Path
    monitor: Monitor

    @property
    def layout(self) -> Any:
        return self.session.subject.layout

    @cached_property
    def _proxy(self) -> Proxy:
        text = self.session.text["final"]
        bound: Proxy = EVALUATORS.create("perplexity").bind(self.session.loaded.model, text)
        return bound

    def row_file(self, case: Case) -> Path:
        return self.out / "rows" / f"{case.key}.json"

    def perplexity(self) -> float | None:
        """Return the perplexity of the model as it is, None if it is not finite."""
        rows = range(len(self.session.text["final"]))
        value = self._proxy.score(self.session.loaded.model, rows).value
        return value if math.isfinite(value) else None

    def row(self, case: Case) -> dict[str, Any]:
        """Measure one case; the model is dense again afterwards."""
        row = {
            "format": FORMAT,
            "key": case.key,
            "allocator": case.allocator,
            "pruner": case.pruner,
            "target": case.budget.target,
            "seed": case.seed,
            "fingerprint": case.fingerprint,
            "error": None,
        }
        try:
            with self.session.subject.preserved():
                return {**row, **self._measured(case)}
        except SparsitySearchError as error:
            return {**row, "error": " ".join(str(error).split())}

    def _measured(self, case: Case) -> dict[str, Any]:
        made = self._profile(case)
        profile = SparsityProfile.from_json(self.layout, made)
        text, subject = self._text(case), self.session.subject
        stage = self.monitor.stage(f"prune {case.key}", len(subject.blocks))
        with stage as advance, Meter(subject.blocks, text.numel()) as meter:
            told = prune_sequentially(
                subject, profile, case.pruning, text, seed=case.seed, on_block=advance
            )
        with self.monitor.stage(f"score {case.key}"):
            found = self.perplexity()
        return {
            "profile": case.profile_key,
            "perplexity": found,
            "ratio": self._ratio(case, found),
            "sparsity": profile.sparsity,
            "removed": profile.n_removed,
            "allocation": made["cost"],
            "shared_with": None if made["row"] == case.key else made["row"],
            "pruning": meter.cost.to_json(),
            "notes": made["notes"],
            "pruning_notes": told,
        }

    def _text(self, case: Case) -> Tensor:
        return self.session.text[_purpose(case.seed)]

    def _profile(self, case: Case) -> dict[str, Any]:
        """Return the profile's file: made now, or by a row with another pruner."""
        file = self.out / "profiles" / f"{case.profile_key}.json"
        if not file.exists():
            found, cost = self._allocated(case)
            prints = dict(case.fingerprint)
            if not case.own_profile:
                del prints["pruner"]
            facts = {"notes": list(found.notes), "cost": cost.to_json(), "row": case.key}
            made = {"target": case.budget.target, "fingerprint": prints, **facts}
            model = {"model": self.session.model_facts, "removes": self.session.subject.units}
            write_json(file, {**found.profile.to_json(), **made, **model})
        stored: dict[str, Any] = read_json(file)
        return stored

    def _allocated(self, case: Case) -> tuple[Allocation, Cost]:
        subject, text = self.session.subject, self._text(case)
        stage = self.monitor.stage(f"allocate {case.profile_key}")
        with stage, Meter(subject.blocks, text.numel()) as meter:
            found = case.allocating.detailed(subject, text, case.budget, self.bounds)
        notes = (*found.notes, *_check_count(case, found.profile))
        return replace(found, notes=notes), meter.cost

    def _ratio(self, case: Case, perplexity: float | None) -> float | None:
        """Return the perplexity as a multiple of that of uniform with the same seed."""
        if case.allocator == REFERENCE:
            return None if perplexity is None else 1.0
        uniform = self.row_file(replace(case, allocator=REFERENCE))
        reference = read_json(uniform).get("perplexity")
        return None if perplexity is None or reference is None else perplexity / reference


def _check_count(case: Case, profile: SparsityProfile) -> tuple[str, ...]:
    """Check that a profile removes what the budget says, so that rows are comparable.

    Returns:
        What there is to tell of a pattern, whose legal counts need not meet the budget.

    Raises:
        ProfileError: It does not, to within the largest structure.
    """
    wanted = case.budget.n_removed(profile.layout)
    if abs(profile.n_removed - wanted) < profile.layout.costs.max():
        return ()
    told = f"removes {profile.n_removed} weights, the budget says {wanted}"
    pattern = Pattern.of(case.pruning)
    if case.own_profile and pattern is not None and pattern.scope == "group":
        return (told,)
    raise ProfileError(f"{case.allocator} {told}")
