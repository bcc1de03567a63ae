"""One row of a comparison: a profile is allocated, the model is pruned to it and scored."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session
from sparsity_search.errors import ProfileError, SparsitySearchError
from sparsity_search.interfaces.allocator import Allocation
from sparsity_search.interfaces.evaluator import Proxy
from sparsity_search.models.running.walk import Refresh
from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.pruning.patterns import groups_of
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS
from sparsity_search.runs.comparison import ComparisonFolder
from sparsity_search.workflow.compare.cases import REFERENCE, Case
from sparsity_search.workflow.compare.meter import Cost, Meter


def name_text(seed: int) -> str:
    """Return the purpose of a seed's calibration text."""
    return f"calibration-seed{seed}"


@dataclass(frozen=True)
class Bench:
    """The model that all cases are measured on, and the folder that the rows go to.

    Attributes:
        session: Model and text.
        bounds: Bounds of all profiles.
        folder: Folder of the comparison.
        refresh: See `DataSection.refresh`.
        monitor: Watches the job.
    """

    session: Session
    bounds: Bounds
    folder: ComparisonFolder
    refresh: Refresh
    monitor: Monitor

    @property
    def layout(self) -> Layout:
        """The prunable units."""
        return self.session.subject.layout

    @cached_property
    def _proxy(self) -> Proxy:
        text = self.session.text["final"]
        bound: Proxy = EVALUATORS.create("perplexity").bind(self.session.loaded.model, text)
        return bound

    def measure_perplexity(self) -> float | None:
        """Return the perplexity of the model as it is, None if it is not finite."""
        rows = range(len(self.session.text["final"]))
        value = self._proxy.score(self.session.loaded.model, rows).value
        return value if math.isfinite(value) else None

    def measure_row(self, case: Case) -> dict[str, Any]:
        """Return the row of one case; the model is dense again afterwards."""
        row = {
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
                return {**row, **self._measure(case)}
        except SparsitySearchError as error:
            return {**row, "error": " ".join(str(error).split())}

    def _measure(self, case: Case) -> dict[str, Any]:
        made = self._find_profile(case)
        profile = SparsityProfile.from_json(self.layout, made)
        text, subject = self._text(case), self.session.subject
        stage = self.monitor.step(f"prune {case.key}", len(subject.blocks))
        with stage as advance, Meter(subject.blocks, text.numel() * subject.flow.streams) as meter:
            notes = prune_sequentially(
                subject,
                profile,
                case.pruning,
                text,
                seed=case.seed,
                refresh=self.refresh,
                on_block=advance,
            )
        with self.monitor.step(f"score {case.key}"):
            perplexity = self.measure_perplexity()
        return {
            "profile": case.profile_key,
            "perplexity": perplexity,
            "ratio": self._compare_with_uniform(case, perplexity),
            "sparsity": profile.sparsity,
            "removed": profile.n_removed,
            "allocation": made["cost"],
            "shared_with": None if made["row"] == case.key else made["row"],
            "pruning": meter.cost.to_json(),
            "notes": made["notes"],
            "pruning_notes": notes,
        }

    def _text(self, case: Case) -> Tensor:
        return self.session.text[name_text(case.seed)]

    def _find_profile(self, case: Case) -> dict[str, Any]:
        """Return the profile's file: made now, or by a row with another pruner."""
        file = self.folder.profile_file(case.profile_key)
        if not file.exists():
            found, cost = self._allocate(case)
            fingerprint = dict(case.fingerprint)
            if not case.own_profile:
                del fingerprint["pruner"]
            facts = {
                "target": case.budget.target,
                "fingerprint": fingerprint,
                "notes": list(found.notes),
                "cost": cost.to_json(),
                "row": case.key,
                "model": self.session.model_facts,
                "removes": self.session.subject.units,
            }
            PROFILE_JSON.write(file, {**found.profile.to_json(), **facts})
        return self.folder.read_profile(case.profile_key)

    def _allocate(self, case: Case) -> tuple[Allocation, Cost]:
        subject, text = self.session.subject, self._text(case)
        stage = self.monitor.step(f"allocate {case.profile_key}")
        with stage, Meter(subject.blocks, text.numel() * subject.flow.streams) as meter:
            found = case.allocating.detailed(subject, text, case.budget, self.bounds)
        notes = (*found.notes, *_check_count(case, found.profile))
        return replace(found, notes=notes), meter.cost

    def _compare_with_uniform(self, case: Case, perplexity: float | None) -> float | None:
        """Return the perplexity as a multiple of that of uniform with the same seed."""
        if case.allocator == REFERENCE:
            return None if perplexity is None else 1.0
        uniform = replace(case, allocator=REFERENCE)
        reference = self.folder.read_row(uniform.key).get("perplexity")
        return None if perplexity is None or reference is None else perplexity / reference


def _check_count(case: Case, profile: SparsityProfile) -> tuple[str, ...]:
    """Check that a profile removes as much as the budget says, so that rows are comparable.

    Returns:
        A note about a pattern whose legal counts do not meet the budget.

    Raises:
        ProfileError: It does not, to within the largest structure.
    """
    budget = case.budget.n_removed(profile.layout)
    if abs(profile.n_removed - budget) < profile.layout.costs.max():
        return ()
    note = f"removes {profile.n_removed} weights, the budget says {budget}"
    if case.own_profile and groups_of(case.pruning) is not None:
        return (note,)
    raise ProfileError(f"{case.allocator} {note}")
