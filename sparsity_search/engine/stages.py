"""The stages of a search, coarse to fine: each has a space, a supernet, hints and a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from optuna.storages import BaseStorage

from sparsity_search.config.schema import GRADIENTS
from sparsity_search.engine.fingerprint import StudyKey, identify_study
from sparsity_search.engine.hints import measure_hint, read_hints
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.patience import PatientStore
from sparsity_search.engine.supernets import StageSupernet
from sparsity_search.engine.workers import run_crew
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.redact import redact
from sparsity_search.runs.stage_spaces import AROUND, SEARCHED, build_stage_spaces
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.parameters import Value
from sparsity_search.spaces.space import Space
from sparsity_search.study.study import Limits, Objective, Recorder, Study
from sparsity_search.supernet.gradients import compute_gradient_hint
from sparsity_search.supernet.objective import SupernetObjective
from sparsity_search.supernet.switch import Switch
from sparsity_search.trials.history import Fidelity, History, Score
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import Store

#: Text of the gradients: sequences, tokens of each, and positions for the second order.
_SEQUENCES, _LENGTH, _POSITIONS = 8, 512, 128


@dataclass(frozen=True)
class StagesResult:
    """The outcome of all stages.

    Attributes:
        profile: Profile of the best candidate.
        starts: Profiles that the first stage started from, by allocator.
        histories: The history of each stage.
        notes: Lines of the searcher about the stages.
        parameters: Values of the best parameters, by name; None if the search was in levels.
    """

    profile: SparsityProfile
    starts: Mapping[str, SparsityProfile]
    histories: tuple[History, ...]
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Value] | None = None


def run_stages(
    job: SearchJob,
    first: Mapping[str, SparsityProfile],
    storage: BaseStorage | str | None = None,
) -> StagesResult | None:
    """Run or resume the stages of a study, and record them in the run directory.

    Each stage after the first searches the space around the last result with half the step, and
    builds a new supernet from the dense weights (Týr-the-Pruner, arXiv 2503.09657, section 3).

    Args:
        job: The search; the caller owns its directory (`RunDirectory.lock`) and has begun it.
        first: Profiles that the first stage starts from, by name.
        storage: Storage of the measurements; by default a journal in the run directory.

    Returns:
        The outcome; None if the monitor stopped the search.
    """
    directory, key = job.directory, identify_study(job).starting_from(first)
    storage = storage or open_journal(directory.journal_file)
    starts = [dict(first)]
    studies: list[str] = []
    histories: list[History] = []
    notes: list[str] = []
    values: Mapping[str, Value] = {}
    profile = job.space.base
    for index in range(job.config.study.stages):
        if index:
            starts.append({SEARCHED: profile})
        stage = _build_stage(job, key, starts, storage)
        studies.append(stage.key.name)
        directory.write_stages(studies, starts)
        outcome = stage.run()
        if job.monitor.stopped():
            return None
        history = outcome.history
        histories.append(history)
        notes += stage.notes(outcome)
        best = history.survivors[0] if history.survivors else stage.searched.origin
        profile, values = stage.searched.profile(best), stage.searched.values(best)
    return StagesResult(profile, starts[0], tuple(histories), tuple(notes), values or None)


def find_present_stage(
    job: SearchJob, storage: BaseStorage | str, key: StudyKey
) -> SearchStage | None:
    """Return the present stage of a search; None if the first one has not begun."""
    starts = job.directory.read_starts(job.space.layout)
    return _build_stage(job, key.starting_from(starts[0]), starts, storage) if starts else None


def begin(job: SearchJob, command: Sequence[str] = ()) -> None:
    """Write ``run.json``, with credentials hidden, or check that this run may resume.

    Args:
        job: The search.
        command: The command line, for the record.

    Raises:
        RunMismatchError: The directory holds a run of another fingerprint.
    """
    key = identify_study(job)
    facts: dict[str, Any] = {
        **job.session.describe_origin(command),
        "config": job.config.model_dump(mode="json"),
        "fingerprint": key.fingerprint,
        "model": job.session.model_facts,
        "text": job.session.text_facts,
        "layout": job.space.layout.to_json(),
        "hidden_size": job.session.hidden_size,
    }
    hidden = redact(facts, (job.config.study.storage or "",))
    job.directory.begin(hidden, job.space.prices)


def _build_stage(
    job: SearchJob,
    key: StudyKey,
    starts: Sequence[Mapping[str, SparsityProfile]],
    storage: BaseStorage | str,
) -> SearchStage:
    """Return the last of the stages that start from ``starts``."""
    number = len(starts)
    space = build_stage_spaces(job.space, key.fingerprint, starts)[-1]
    initial = list(starts[0].values()) if number == 1 else []
    if AROUND in key.fingerprint and number == 1:
        initial.append(job.space.base)  # no longer level 0
    return SearchStage(job, space, number, tuple(initial), storage, key.at_stage(number, space))


@dataclass(frozen=True)
class StageOutcome:
    """The outcome of one stage: its history, and the hints that its searcher had."""

    history: History
    hints: Mapping[str, Hint]


@dataclass(frozen=True)
class SearchStage:
    """One stage of a search.

    Attributes:
        job: The search.
        space: Space of this stage.
        number: Number of this stage, from 1.
        starts: Profiles of round 0; spaces of parameters ignore them.
        storage: Storage of its measurements.
        key: Key of its study in the storage.
    """

    job: SearchJob
    space: SearchSpace
    number: int
    starts: tuple[SparsityProfile, ...]
    storage: BaseStorage | str
    key: StudyKey

    @cached_property
    def searched(self) -> Space:
        """The space that is searched: the levels, or the parameters over them."""
        return self.space if self.job.parameters is None else self.job.parameters

    @cached_property
    def store(self) -> Recorder:
        """The store of its measurements; it waits for a database that does not answer."""
        facts = self.key.name, self.key.fingerprint, self.searched
        return PatientStore(lambda: Store(self.storage, *facts), self.job.monitor)

    def notes(self, outcome: StageOutcome) -> list[str]:
        """Return the searcher's lines about this stage."""
        space = self.searched.with_hints(self._order_hints(outcome.hints))
        lines = self.job.plugins.searcher.notes(space, outcome.history)
        several = self.job.config.study.stages > 1
        return [f"stage {self.number}: {line}" if several else line for line in lines]

    def run(self) -> StageOutcome:
        """Search, and return the outcome. Recorded measurements need no supernet."""
        if self.searched.parameters:
            with self.job.monitor.step("allocate start"):
                self.searched.profile(self.searched.origin)  # before a supernet is built
        hints = read_hints(self.job, self.number, self.space)
        recorded = self._find_recorded(hints, self._limits)
        return self._measure(hints) if recorded is None else StageOutcome(recorded, hints)

    def ready(self) -> bool:
        """Return whether hints, supernet and round 0 are ready, so that workers can join."""
        hints = read_hints(self.job, self.number, self.space)
        return self._find_recorded(hints, Limits(rounds=0)) is not None and (
            self._supernet.is_kept()
        )

    def _find_recorded(self, hints: Mapping[str, Hint], limits: Limits) -> History | None:
        """Return the history up to the limits if all of it is recorded already."""
        if len(hints) < len(self.job.config.hints):
            return None
        return self._study(hints, _refuse).replay(limits)

    def _measure(self, hints: Mapping[str, Hint]) -> StageOutcome:
        """Search with a supernet, given the hints that are known."""
        job, loaded = self.job, self.job.session.loaded
        hints = {**hints, **self._measure_hints(hints)}
        with job.monitor.step("bind evaluator"):
            proxy = job.plugins.evaluator.bind(loaded.model, job.search_text, loaded.tokenizer)
            needs_gradients = GRADIENTS in job.config.hints and GRADIENTS not in hints
            divergence = self._bind_divergence() if needs_gradients else None
        prefixes = PrefixCache(job.session.subject, job.config.supernet.prefix_mib * 2**20)
        with job.resident.hold(self._supernet.build()) as switch:
            seed = job.config.study.seed
            objective = SupernetObjective(prefixes, switch, proxy, job.pool, seed)
            if divergence is not None:
                hints[GRADIENTS] = self._measure_gradients(objective, switch, divergence)
            if job.claims is not None:
                self._measure_starts(objective)  # the record knows them by their positions
            with job.monitor.step("search"), run_crew(job):
                history = self._study(hints, objective).run(self._limits)
        return StageOutcome(history, hints)

    @cached_property
    def _limits(self) -> Limits:
        """Limits of each stage: its rounds and its share of the time."""
        study = self.job.config.study
        seconds = study.time_limit and 60 * study.time_limit / study.stages
        return Limits(study.rounds, seconds, self.job.monitor.stopped)

    def _order_hints(self, hints: Mapping[str, Hint]) -> tuple[Hint, ...]:
        """Return all hints in the order of the configuration; none while one is missing."""
        names = self.job.config.hints
        return tuple(hints[name] for name in names) if len(hints) == len(names) else ()

    def _study(self, hints: Mapping[str, Hint], objective: Objective) -> Study:
        ladder = self.job.config.ladder
        return Study(
            space=self.searched.with_hints(self._order_hints(hints)),
            searcher=self.job.plugins.searcher,
            objective=objective,
            ladder=ladder,
            store=self.store,
            initial=self.searched.starts(self.starts),
            seed=self.job.config.study.seed,
            on_measured=lambda m: self.job.monitor.measured(m, ladder.in_round(m.round).top),
            claims=self.job.claims,
        )

    def _measure_hints(self, known: Mapping[str, Hint]) -> dict[str, Hint]:
        """Measure and record the missing hints of the dense model."""
        hints = {}
        for name in self.job.config.hints:
            if name != GRADIENTS and name not in known:
                hints[name] = measure_hint(self.job, name, self.space)
                self.job.directory.write_hint(self.number, hints[name], self.space)
        return hints

    def _bind_divergence(self) -> DivergenceExpansion:
        """Return the divergence to differentiate; the model is still dense."""
        text = self.job.search_text[:_SEQUENCES, :_LENGTH]
        seed = self.job.config.study.seed
        return DivergenceExpansion(self.job.session.subject, text, _POSITIONS, seed)

    def _measure_gradients(
        self, objective: Objective, switch: Switch, divergence: DivergenceExpansion
    ) -> Hint:
        """Measure and record the hint from gradients at the best start, and return it."""
        history = self._measure_starts(objective)
        start = history.survivors[0] if history.survivors else self.space.origin
        with self.job.monitor.step("measure gradients"):
            hint = compute_gradient_hint(self.space, start, switch, divergence)
        self.job.directory.write_hint(self.number, hint, self.space)
        return hint

    def _measure_starts(self, objective: Objective) -> History:
        """Measure round 0 silently, and return its history; the search shows it later."""
        silent = replace(self._study({}, objective), on_measured=lambda _: None)
        return silent.run(replace(self._limits, rounds=0))

    @cached_property
    def _supernet(self) -> StageSupernet:
        """The supernet around the start of the search, or around the last stage's result."""
        centre = self.space.base
        if self.job.config.supernet.propagate == "start" and self.starts:
            centre = self.space.profile(self.space.nearest(self.starts[0]))
        return StageSupernet(self.job, self.space, self.number, centre, self.key.fingerprint)


def _refuse(profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None) -> Score:
    """Fail: the objective of a study whose measurements are all recorded."""
    raise AssertionError(f"{profile.digest} is to be measured on {fidelity}, after {known}")
