"""The steps of a plan: each brings candidates, and the best one so far is kept as pruned."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparsity_search.config.schema import GRADIENTS, PrunerSection
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.memory import measure_memory
from sparsity_search.engine.parameters import get_allocation_bounds
from sparsity_search.engine.plugins import (
    Plugins,
    build_final,
    label_starts,
)
from sparsity_search.engine.stages import StagesResult
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.views import are_linear
from sparsity_search.plans.plan import UNIFORM, Plan, PlanStep
from sparsity_search.plans.schedule import has_time, reserve
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import describe
from sparsity_search.runs.stage_spaces import SEARCHED
from sparsity_search.runs.trail import StepRecord, Trail
from sparsity_search.utils.files import compute_digest
from sparsity_search.workflow.search.building import build_step_allocator, configure_study
from sparsity_search.workflow.search.clock import Clock
from sparsity_search.workflow.search.costs import StepCosts
from sparsity_search.workflow.search.judge import Judge, Pruned, Verdict

#: Part of the keys of candidates that another pruner prunes.
ANEW = "rebuild"

#: Runs a study from start profiles.
RunStudy = Callable[[SearchJob, Mapping[str, SparsityProfile]], StagesResult | None]
#: Returns a profile with remarks about it.
MakeProfile = Callable[[], tuple[SparsityProfile, Sequence[str]]]


@dataclass(frozen=True)
class _Final:
    """A pruner that candidates are pruned with, its name and settings, and its costs' name."""

    pruner: Pruner
    spec: Mapping[str, Any]
    cost: str = ""


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
        self._usual = _Final(self.job.plugins.final, section.spec)
        allocators = [step.allocate for step in self.plan.steps if step.allocate is not None]
        self._labels = {name: label for label, name in label_starts(allocators).items()}
        self._pruned: Pruned | None = None  # of the best candidate, if made in this session
        self._judged = False

    def run(self) -> None:
        """Make all steps that the time allows; Ctrl-C ends it after the uniform profile."""
        self.job.directory.write_profile(UNIFORM, self.job.space.base)  # one from the beginning
        titles = [UNIFORM, *(step.title for step in self.plan.steps), "checkpoint and report"]
        self._tell_step(titles, 0)
        self.dense = self._judge.score_dense()
        self._since = time.monotonic()
        self._add(UNIFORM, [UNIFORM], lambda: (self.job.space.base, ()), self._usual)
        try:
            for index in range(len(self.plan.steps)):
                self._tell_step(titles, index + 1)
                self._make(self.plan.steps[index:])
                if self.job.monitor.stopped():
                    raise KeyboardInterrupt
            self._tell_step(titles, len(titles) - 1)
            self._prune_anew(UNIFORM, self.records[0].profile, self.best.pruner)
        except KeyboardInterrupt:  # asked to stop in the middle of a step
            pass
        self.job.monitor.close()

    def _tell_step(self, titles: Sequence[str], index: int) -> None:
        """Tell the monitor which step begins."""
        self.job.monitor.at_step(titles[index], index + 1, len(titles), self.clock.left)

    @property
    def seconds(self) -> float:
        """Time of the whole job; a session that repeats a finished one adds none."""
        worked = self._judged or self.job.monitor.stopped()
        return self.clock.elapsed if worked else self.trail.seconds

    @property
    def best(self) -> StepRecord:
        """The best candidate so far."""
        return [record for record in self.records if record.best][-1]

    def read_best(self) -> Pruned:
        """Return the best candidate as pruned; one of an earlier session is pruned again."""
        if self._pruned is None:
            best, usual = self.best, self._usual
            own = best.pruner == usual.spec
            pruner = usual.pruner if own else self._build(best.pruner)
            self._pruned = self._judge.prune(best.name, best.profile, pruner)
        return self._pruned

    def _build(self, spec: Mapping[str, Any]) -> Pruner:
        """Return a pruner of the end, with the pattern of the search's pruner."""
        return build_final(self.job.config, self.job.plugins.pruner, PrunerSection(**spec))

    def _make(self, steps: Sequence[PlanStep]) -> None:
        """Make the first of steps if it is possible; the later ones need time too."""
        step = steps[0]
        try:
            self._make_now(steps)
        except ConfigError as error:
            if step.search == {}:  # a study that the user describes
                raise
            # the model does not allow what the plan chose; candidates so far count
            self.skipped.append(f"{step.title}: {error}")

    def _make_now(self, steps: Sequence[PlanStep]) -> None:
        """Make the first of steps.

        Raises:
            ConfigError: The model does not allow it.
        """
        step = steps[0]
        if step.search is not None:
            self._search(step.search, reserve(steps, self.costs))
        elif step.rebuild is not None:
            self._prune_anew(self._origin, self.best.profile, step.rebuild.spec)
        else:
            for turn in range(step.repeat):
                before = self.best
                self._allocate(steps, turn)
                if self.best is before:
                    return

    def _allocate(self, steps: Sequence[PlanStep], turn: int) -> None:
        """Judge an allocator's profile. Each turn begins at another sequence of the text.

        A descent on the sequences that gave its start would fit these alone.
        """
        step, job = steps[0], self.job
        assert step.allocate is not None
        name = self._labels[step.allocate]
        allocator = build_step_allocator(job.config, step, self.best.profile)
        key = [describe(allocator), turn]
        text = job.session.text["calibration"]
        text = text.roll(-turn * len(text) // step.repeat, dims=0)
        if not self._knows(key, self._usual.spec) and not self._is_possible(name, steps):
            return

        def allocate() -> tuple[SparsityProfile, Sequence[str]]:
            with job.monitor.step(f"allocate {name}"):
                found = allocator.detailed(
                    job.session.subject, text, job.space.budget, get_allocation_bounds(job.space)
                )
            return job.space.project(found.profile), found.notes

        self._add(name, key, allocate, self._usual)

    def _is_possible(self, name: str, steps: Sequence[PlanStep]) -> bool:
        """Whether there is time for the first step, an allocation, and room; else it is noted."""
        if not has_time(steps, self.costs, self.clock.left):
            left = round(self.clock.left)
            self.skipped.append(f"{name}: no time for it and what follows, {left} s are left")
            return False
        folder, needed = tempfile.gettempdir(), self.costs.copies(steps[0])
        if needed <= shutil.disk_usage(folder).free:
            return True
        self.skipped.append(f"{name}: {needed / 2**30:.1f} GiB are needed in {folder}")
        return False

    def _search(self, settings: Mapping[str, Any], reserve: float) -> None:
        needed, there = self.costs.memory / 2**30, self._measure_memory() / 2**30
        if needed > there:
            told = "--set supernet.store=disk, or --pruner wanda, needs less"
            self.skipped.append(f"search: {needed:.1f} GiB of {there:.1f} are needed; {told}")
            return
        starts = self._list_starts()
        job = self._adapt(self._leave_out_hints(settings), starts, reserve)
        if job is None:
            self.skipped.append("search: no time is left")
            return
        self.searched = self.study(job, starts)
        if self.searched is not None:
            profile = self.searched.profile
            self._add(SEARCHED, [SEARCHED, profile.digest], lambda: (profile, ()), self._usual)

    def _leave_out_hints(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a study's settings without gradients, where units are not in linear layers."""
        hints = settings.get("hints", ())
        if GRADIENTS not in hints or are_linear(self.job.session.subject.views.values()):
            return settings
        return {**settings, "hints": [hint for hint in hints if hint != GRADIENTS]}

    def _measure_memory(self) -> float:
        """Return the bytes of the memory that holds a supernet."""
        session = self.job.session
        return measure_memory("cpu" if session.subject.offload else session.loaded.model.device)

    def _list_starts(self) -> dict[str, SparsityProfile]:
        """Return the profiles that a study starts from, the best one first.

        They are those that the user named and that there was time for, in the user's order.
        """
        made = {record.name: record.profile for record in self.records}
        named = {name: made[name] for name in self.job.plugins.initial if name in made}
        return named or {self.best.name: self.best.profile}

    def _adapt(
        self, settings: Mapping[str, Any], starts: Mapping[str, SparsityProfile], reserve: float
    ) -> SearchJob | None:
        """Return the job of a study with its settings and its time; None without time."""
        config = configure_study(self.job.config, settings)
        if config.study.time_limit is not None:
            study = compute_digest([profile.digest for profile in starts.values()])
            least = reserve + self.costs.begin_search()
            if self.clock.left < least and not self.trail.knows(study):
                return None
            left = self.clock.left - reserve - self.costs.prepare_search() - self.costs.judge()
            minutes = self.trail.allot(study, self.clock.limit, left) / 60
            section = config.study.model_copy(update={"minutes": minutes})
            config = config.model_copy(update={"study": section})
        return replace(self.job, config=config, plugins=Plugins.of(config))

    @property
    def _origin(self) -> str:
        """Name of the candidate that first had the best profile."""
        profile = self.best.profile
        return next(record.name for record in self.records if record.profile == profile)

    def _prune_anew(self, name: str, profile: SparsityProfile, spec: Mapping[str, Any]) -> None:
        """Judge a profile with another pruner, unless it is known with this one."""
        pruned = [(record.profile, record.pruner) for record in self.records]
        pruner, key = spec["name"], [ANEW, profile.digest]
        if (profile, spec) in pruned:
            return
        seconds = self.costs.judge(pruner)
        if not (
            self._knows(key, spec) or self._fits(f"{name}-{pruner}", seconds, self.costs.save)
        ):
            return
        final = _Final(self._build(spec), spec, pruner)
        self._add(f"{name}-{pruner}", key, lambda: (profile, ()), final)

    def _knows(self, key: list[Any], pruner: Mapping[str, Any]) -> bool:
        """Whether an earlier session judged a candidate with a pruner."""
        return self.trail.find(compute_digest(key), pruner) is not None

    def _fits(self, kind: str, seconds: float, reserve: float) -> bool:
        """Whether there is time for a step; else it is noted."""
        if seconds + reserve <= self.clock.left + self.clock.grace:
            return True
        needed, left = round(seconds + reserve), round(self.clock.left)
        self.skipped.append(f"{kind}: {needed} s are needed to the end, {left} s are left")
        return False

    def _add(self, name: str, parts: list[Any], make: MakeProfile, by: _Final) -> None:
        """Judge a candidate, and keep it if it is better than the best one so far."""
        key, pruned = compute_digest(parts), None
        record = self.trail.find(key, by.spec)
        if record is None:
            record, pruned = self._judge_new(name, key, make, by)
            self._judged = True
        best = not self.records or Verdict(record.row, record.parts).beats(
            Verdict(self.best.row, self.best.parts), self.plan.confidence
        )
        if best:
            self._pruned = pruned
        self.records.append(replace(record, best=best))
        known = {(done.key, str(done.pruner)) for done in self.records}
        later = [r for r in self.trail.records if (r.key, str(r.pruner)) not in known]
        self.trail.keep([*self.records, *later], self.seconds)
        self.job.directory.write_profile(record.name, record.profile)
        self.job.monitor.judged(self.records[-1])
        self._since = time.monotonic()

    def _judge_new(
        self, name: str, key: str, make: MakeProfile, by: _Final
    ) -> tuple[StepRecord, Pruned]:
        """Make the profile of a candidate unless it is known, and prune the model to it."""
        known = self.trail.find(key)
        name = self._choose_name(name)
        profile, notes = make() if known is None else (known.profile, known.notes)
        begun = time.monotonic()
        pruned = self._judge.prune(name, profile, by.pruner)
        self.costs.observe(time.monotonic() - begun, by.cost)
        record = StepRecord(
            name=name,
            key=key,
            profile=profile,
            pruner=by.spec,
            row=dict(pruned.verdict.row),
            parts=list(pruned.verdict.parts),
            best=False,
            seconds=round(time.monotonic() - self._since, 3),
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
