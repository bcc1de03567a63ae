"""The steps of a plan: each brings candidates, and the best one so far is kept as pruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.given_profile import GivenProfile
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.parameters import get_allocation_bounds
from sparsity_search.engine.plugins import Plugins, build_allocator, build_factory, label_starts
from sparsity_search.engine.stages import StagesResult
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.plans.plan import Plan, PlanStep
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import PRUNERS, describe
from sparsity_search.runs.stage_spaces import SEARCHED
from sparsity_search.runs.trail import StepRecord, Trail
from sparsity_search.utils.files import compute_digest
from sparsity_search.workflow.search.clock import Clock
from sparsity_search.workflow.search.costs import StepCosts
from sparsity_search.workflow.search.judge import Judge, Pruned, Verdict

#: Name of the baseline, which is a candidate of every search.
UNIFORM = "uniform"
#: Value of an allocator's setting that stands for the best profile so far.
_BEST = "best"

#: Part of the keys of candidates that a last pruner rebuilds.
FINAL = "finalise"

#: Runs a study from start profiles.
RunStudy = Callable[[SearchJob, Mapping[str, SparsityProfile]], StagesResult | None]
#: Returns a profile with remarks about it.
MakeProfile = Callable[[], tuple[SparsityProfile, Sequence[str]]]


@dataclass(frozen=True)
class _Rebuild:
    """A pruner that candidates are rebuilt with, and its name and settings."""

    pruner: Pruner
    spec: Mapping[str, Any]


@dataclass
class PlanRun:
    """A plan while it runs.

    Attributes:
        job: The search.
        plan: Its plan.
        clock: Time of the whole job.
        trail: Candidates of this and earlier sessions.
        costs: What steps take on this machine.
        study: Runs the study of a step.
        records: Candidates so far, in their order.
        searched: Outcome of the study, if the plan has reached it.
        skipped: Lines about steps for which there was no time.
    """

    job: SearchJob
    plan: Plan
    clock: Clock
    trail: Trail
    costs: StepCosts
    study: RunStudy
    records: list[StepRecord] = field(default_factory=list)
    searched: StagesResult | None = None
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._judge = Judge(self.job)
        config = self.job.config
        section = config.finalise or config.pruner
        self._usual = _Rebuild(self.job.plugins.final, section.model_dump(mode="json"))
        self._pruned: Pruned | None = None  # of the best candidate, if made in this session

    def run(self) -> None:
        """Make all steps that the time allows; Ctrl-C ends it after the uniform profile."""
        self.dense = self._judge.score_dense()
        self._add(UNIFORM, [UNIFORM], lambda: (self.job.space.base, ()), self._usual)
        try:
            for index, step in enumerate(self.plan.steps):
                self._make(step, self._reserve(self.plan.steps[index + 1 :]))
                if self.job.monitor.stopped():
                    break
        except KeyboardInterrupt:  # asked to stop in the middle of a step
            pass
        self.job.monitor.close()

    @property
    def best(self) -> StepRecord:
        """The best candidate so far."""
        return [record for record in self.records if record.best][-1]

    def read_best(self) -> Pruned:
        """Return the best candidate as pruned; one of an earlier session is pruned again."""
        if self._pruned is None:
            best, usual = self.best, self._usual
            pruner = usual.pruner if best.pruner == usual.spec else self._build(best.pruner)
            self._pruned = self._judge.prune(best.name, best.profile, pruner)
        return self._pruned

    def _build(self, pruner: Any) -> Pruner:
        found: Pruner = build_factory(self.job.config).resolve(PRUNERS, pruner)
        return found

    def _make(self, step: PlanStep, reserve: float) -> None:
        if step.search is not None:
            self._search(step.search, reserve)
        elif step.finalise is not None:
            self._finalise(step)
        else:
            for _ in range(step.repeat):
                before = self.best
                self._allocate(step, reserve)
                if self.best is before:
                    return

    def _reserve(self, later: tuple[PlanStep, ...]) -> float:
        """Return the seconds that the end of the job will take."""
        return self.costs.save + sum(
            self.costs.finalise(step.finalise) for step in later if step.finalise is not None
        )

    def _allocate(self, step: PlanStep, reserve: float) -> None:
        assert step.allocate is not None
        settings = dict(step.settings)
        labels = {start: label for label, start in label_starts(self.job.config.initial).items()}
        name = labels.get(step.allocate, step.allocate)
        if settings.get("start") == _BEST:
            settings["start"] = GivenProfile(profile=self.best.profile)
        allocator = build_allocator(self.job.config, step.allocate, settings)
        key, job = [describe(allocator)], self.job
        if not self._fits(name, key, self.costs.allocate(step), reserve):
            return

        def allocate() -> tuple[SparsityProfile, Sequence[str]]:
            with job.monitor.step(f"allocate {name}"):
                found = allocator.detailed(
                    job.session.subject,
                    job.session.text["calibration"],
                    job.space.budget,
                    get_allocation_bounds(job.space),
                )
            return job.space.project(found.profile), found.notes

        self._add(name, key, allocate, self._usual)

    def _search(self, settings: Mapping[str, Any], reserve: float) -> None:
        starts = self._list_starts()
        job = self._adapt(settings, starts, reserve + self.costs.rebuild)
        if job is None:
            self.skipped.append("search: no time is left")
            return
        self.searched = self.study(job, starts)
        if self.searched is not None:
            profile = self.searched.profile
            self._add(SEARCHED, [SEARCHED, profile.digest], lambda: (profile, ()), self._usual)

    def _list_starts(self) -> dict[str, SparsityProfile]:
        """Return the profiles that a study starts from, the best one first."""
        if self.job.plugins.initial:  # named by the user, in their order
            by_name = {record.name: record.profile for record in self.records}
            return {name: by_name[name] for name in self.job.plugins.initial}
        return {self.best.name: self.best.profile}

    def _adapt(
        self, settings: Mapping[str, Any], starts: Mapping[str, SparsityProfile], reserve: float
    ) -> SearchJob | None:
        """Return the job of a study with its settings and its time; None without time."""
        config = self.job.config
        if settings:
            config = RunConfig.model_validate(_merge(config.model_dump(), settings))
        if config.study.time_limit is not None:
            study = compute_digest([profile.digest for profile in starts.values()])
            if self.clock.left <= reserve and not self.trail.knows(study):
                return None
            left = self.clock.left - reserve
            minutes = self.trail.allot(study, self.clock.limit, left) / 60
            section = config.study.model_copy(update={"minutes": minutes})
            config = config.model_copy(update={"study": section})
        return replace(self.job, config=config, plugins=Plugins.of(config))

    def _finalise(self, step: PlanStep) -> None:
        """Rebuild the best profile and the uniform one with the last pruner."""
        assert step.finalise is not None
        pruner = self._build(step.finalise)
        rebuild, best = _Rebuild(pruner, {"name": step.finalise}), self.best
        for record in [best] if best.name == UNIFORM else [best, self.records[0]]:
            key = [FINAL, record.profile.digest]
            if self._fits(step.finalise, key, self.costs.finalise(step.finalise) / 2, 0.0):
                name = f"{record.name}-{step.finalise}"
                self._add(name, key, partial(_get_profile, record), rebuild)

    def _fits(self, kind: str, key: list[Any], seconds: float, reserve: float) -> bool:
        """Whether a step is known already, or there is time for it; else it is noted."""
        if self.trail.find(compute_digest(key)) or seconds + reserve <= self.clock.left:
            return True
        needed, left = round(seconds + reserve), round(self.clock.left)
        self.skipped.append(f"{kind}: {needed} s are needed to the end, {left} s are left")
        return False

    def _add(self, name: str, parts: list[Any], make: MakeProfile, by: _Rebuild) -> None:
        """Judge a candidate, and keep it if it is better than the best one so far."""
        key, pruned = compute_digest(parts), None
        record = self.trail.find(key, by.spec)
        if record is None:
            record, pruned = self._judge_new(name, key, make, by)
        best = not self.records or Verdict(record.row, record.parts).beats(
            Verdict(self.best.row, self.best.parts), self.plan.confidence
        )
        if best:
            self._pruned = pruned
        self.records.append(replace(record, best=best))
        known = {(done.key, str(done.pruner)) for done in self.records}
        later = [r for r in self.trail.records if (r.key, str(r.pruner)) not in known]
        self.trail.keep([*self.records, *later], self.clock.elapsed)
        self.job.directory.write_profile(record.name, record.profile)

    def _judge_new(
        self, name: str, key: str, make: MakeProfile, by: _Rebuild
    ) -> tuple[StepRecord, Pruned]:
        """Make the profile of a candidate unless it is known, and prune the model to it."""
        started, known = time.monotonic(), self.trail.find(key)
        name = self._choose_name(name)
        profile, notes = make() if known is None else (known.profile, known.notes)
        pruned = self._judge.prune(name, profile, by.pruner)
        record = StepRecord(
            name=name,
            key=key,
            profile=profile,
            pruner=by.spec,
            row=dict(pruned.verdict.row),
            parts=list(pruned.verdict.parts),
            best=False,
            seconds=round(time.monotonic() - started, 3),
            elapsed=round(self.clock.elapsed, 3),
            notes=[*notes, *pruned.notes],
        )
        return record, pruned

    def _choose_name(self, name: str) -> str:
        """Return a name that no candidate has."""
        taken, number, found = {record.name for record in self.records}, 1, name
        while found in taken:
            number += 1
            found = f"{name}-{number}"
        return found


def _get_profile(record: StepRecord) -> tuple[SparsityProfile, Sequence[str]]:
    return record.profile, ()


def _merge(config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with settings on top, section by section."""
    merged = dict(config)
    for key, value in settings.items():
        inner = isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
        merged[key] = _merge(config[key], value) if inner else value
    return merged
