"""The stages of a search, coarse to fine: each has a space, a supernet, hints and a study."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from sparsity_search.engine.crew import crew
from sparsity_search.engine.hints import GRADIENTS, measure_hints, stored_hints, write_hint
from sparsity_search.engine.job import Job
from sparsity_search.engine.parameters import parametric_space
from sparsity_search.errors import RunMismatchError
from sparsity_search.models.running.divergence import Divergence
from sparsity_search.models.running.prefixes import Prefixes
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs import directory
from sparsity_search.runs.starts import AROUND, first_space, kept_starts
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.parameters import Value
from sparsity_search.spaces.space import Space
from sparsity_search.study.study import Limits, Objective, Study
from sparsity_search.supernet.build import SupernetPlan, build
from sparsity_search.supernet.disk import SupernetFolder, shared
from sparsity_search.supernet.gradients import gradient_hint
from sparsity_search.supernet.objective import SupernetObjective
from sparsity_search.supernet.switch import Supernet, Switch
from sparsity_search.trials.history import Fidelity, History, Score
from sparsity_search.trials.store import Store
from sparsity_search.utils.files import write_json

#: Search time if neither rounds nor minutes are given.
DEFAULT_MINUTES = 10.0
#: Text of the gradients: sequences, tokens of each, and positions that tell the second order.
_SEQUENCES, _LENGTH, _POSITIONS = 8, 512, 128


@dataclass(frozen=True)
class Searched:
    """What the stages found.

    Attributes:
        profile: Of the best candidate.
        histories: Of each stage.
        notes: What the searcher has to tell of them.
        parameters: Values that gave the profile, by name; None if the search was in levels.
    """

    profile: SparsityProfile
    histories: tuple[History, ...]
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Value] | None = None


def search_stages(
    job: Job,
    initial: Mapping[str, SparsityProfile],
    storage: BaseStorage | str,
    study: tuple[str, Mapping[str, Any]],
) -> Searched | None:
    """Search the space, then the space around what was found with half the step, and so on.

    Týr-the-Pruner (arXiv 2503.09657, section 3): each stage's supernet is built anew from the
    dense weights, around the last result.

    Args:
        job: The search.
        initial: Profiles that the first stage starts from, by name; a later one starts from the
            last stage's best.
        storage: Where measurements are kept.
        study: Name and fingerprint of the first stage's study.

    Returns:
        What was found; None if the monitor stopped the search.
    """
    histories: list[History] = []
    names: list[str] = []
    notes: list[str] = []
    values: Mapping[str, Value] = {}
    profile = job.space.base
    starts = [dict(initial)]
    for index in range(job.config.study.stages):
        if index:
            starts.append({"searched": profile})
        stage = _stage(job, starts, storage, study)
        names.append(stage.name)
        kept = [{name: start.to_json() for name, start in each.items()} for each in starts]
        write_json(job.out / directory.STARTS, kept)
        write_json(job.out / directory.STAGES, names)
        history = stage.run()
        if job.monitor.stopped():
            return None
        histories.append(history)
        notes += stage.notes(history)
        best = history.survivors[0] if history.survivors else stage.searched.origin
        profile, values = stage.searched.profile(best), stage.searched.values(best)
    return Searched(profile, tuple(histories), tuple(notes), values or None)


def present_stage(
    job: Job, storage: BaseStorage | str, study: tuple[str, Mapping[str, Any]]
) -> Stage | None:
    """Return the stage that a search is in by now; None if it has not come to its first."""
    starts = kept_starts(job.out, job.space.layout)
    return _stage(job, starts, storage, study) if starts else None


def _stage(
    job: Job,
    starts: Sequence[Mapping[str, SparsityProfile]],
    storage: BaseStorage | str,
    study: tuple[str, Mapping[str, Any]],
) -> Stage:
    """Return the last of the stages that start from ``starts``: each is around the one before."""
    (name, fingerprint), index = study, len(starts) - 1
    space = first_space(job.space, fingerprint, starts[0])
    for start in starts[1:]:
        space = space.refined(start["searched"])
    if index:
        name = f"{name}-stage{index + 1}-{space.digest}"
        fingerprint = {**fingerprint, "space": space.digest, "stage": index + 1}
    initial = [] if index else list(starts[0].values())
    if AROUND in fingerprint and not index:
        initial.append(job.space.base)  # no longer level 0
    return Stage(job, space, index, tuple(initial), storage, name, fingerprint)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        job: The search.
        space: Of this stage.
        index: Of this stage, from 0.
        starts: Profiles of round 0; settings that give them are not known.
        storage: Where its measurements are kept.
        name: Of its study there.
        fingerprint: What measurements depend on.
    """

    job: Job
    space: SearchSpace
    index: int
    starts: tuple[SparsityProfile, ...]
    storage: BaseStorage | str
    name: str
    fingerprint: Mapping[str, Any]
    _switch: list[Switch] = field(default_factory=list, repr=False)

    @cached_property
    def searched(self) -> Space:
        """The space of levels, or that of parameters over it."""
        return parametric_space(self.job, self.space, self._dense) or self.space

    @cached_property
    def store(self) -> Store:
        """Its measurements."""
        return Store(self.storage, self.name, self.fingerprint, self.searched)

    def _dense(self) -> None:
        if self._switch:
            self._switch[0].dense()

    def notes(self, history: History) -> list[str]:
        """Return what the searcher tells of this stage."""
        hints = stored_hints(self._hints, self.job.config.hints, self.space) or ()
        told = self.job.plugins.searcher.notes(self.searched.with_hints(hints), history)
        several = self.job.config.study.stages > 1
        return [f"stage {self.index + 1}: {line}" if several else line for line in told]

    def run(self) -> History:
        """Search; what is recorded is not measured again, and needs no supernet."""
        if self.searched.parameters:
            with self.job.monitor.stage("allocate start"):
                self.searched.profile(self.searched.origin)  # before a supernet is built
        known = stored_hints(self._hints, self.job.config.hints, self.space)
        if known is not None:
            recorded = self._study(known, _never).recorded(self._limits)
            if recorded is not None:
                return recorded
        model = self.job.session.loaded.model
        measure_hints(self.job, self.space, self._hints)
        with self.job.monitor.stage("bind evaluator"):
            tokenizer = self.job.session.loaded.tokenizer
            proxy = self.job.plugins.evaluator.bind(model, self.job.search_text, tokenizer)
            divergence = self._divergence()
        with self._resident() as switch:
            seed = self.job.config.study.seed
            prefixes = Prefixes(
                self.job.session.subject, self.job.config.supernet.prefix_mib * 2**20
            )
            objective = SupernetObjective(prefixes, switch, proxy, self.job.pool, seed)
            if divergence is not None:
                self._gradients(objective, switch, divergence)
            hints = stored_hints(self._hints, self.job.config.hints, self.space)
            if self.job.claims is not None:
                self._start(objective)  # starts are told apart by their places in the record
            with self.job.monitor.stage("search"), crew(self.job):
                return self._study(hints or (), objective).run(self._limits)

    @contextmanager
    def _resident(self) -> Iterator[Switch]:
        with self._supernet().resident() as switch:
            self._switch.append(switch)
            try:
                yield switch
            finally:
                self._switch.clear()

    @property
    def ready(self) -> bool:
        """Whether hints, supernet and round 0 are there, so that others can take part."""
        hints = stored_hints(self._hints, self.job.config.hints, self.space)
        limits = Limits(rounds=0)
        if hints is None or self._study(hints, _never).recorded(limits) is None:
            return False
        with self._folder() as folder:
            return folder is not None and folder.complete(len(self.job.session.subject.blocks))

    @property
    def _hints(self) -> Path:
        return self.job.out / "hints" / f"stage{self.index + 1}"

    @cached_property
    def _limits(self) -> Limits:
        """Rounds of each stage, and its share of the time."""
        study = self.job.config.study
        minutes = study.minutes or (None if study.rounds is not None else DEFAULT_MINUTES)
        seconds = minutes and 60 * minutes / study.stages
        return Limits(study.rounds, seconds, self.job.monitor.stopped)

    def _study(self, hints: Sequence[Hint], objective: Objective) -> Study:
        ladder = self.job.config.ladder.build()
        return Study(
            space=self.searched.with_hints(hints),
            searcher=self.job.plugins.searcher,
            objective=objective,
            ladder=ladder,
            store=self.store,
            initial=self.searched.starts(self.starts),
            seed=self.job.config.study.seed,
            on_measured=lambda m: self.job.monitor.measured(m, ladder.top),
            claims=self.job.claims,
        )

    def _divergence(self) -> Divergence | None:
        """Return what the gradients are of, if they are wanted and not known yet."""
        job = self.job
        if GRADIENTS not in job.config.hints or stored_hints(self._hints, [GRADIENTS], self.space):
            return None
        text = job.search_text[:_SEQUENCES, :_LENGTH]
        return Divergence(job.session.subject, text, _POSITIONS, job.config.study.seed)

    def _start(self, objective: Objective) -> History:
        """Measure round 0; the search shows it when it comes to it."""
        silent = replace(self._study((), objective), on_measured=lambda _: None)
        return silent.run(replace(self._limits, rounds=0))

    def _gradients(self, objective: Objective, switch: Switch, divergence: Divergence) -> None:
        """Leave the hint that the gradients at the best start give."""
        history = self._start(objective)
        start = history.survivors[0] if history.survivors else self.space.origin
        with self.job.monitor.stage("measure gradients"):
            hint = gradient_hint(self.space, start, switch, divergence)
        write_hint(self._hints, self.space, hint)

    def _supernet(self) -> Supernet:
        job, config = self.job, self.job.config
        chosen = config.supernet.propagate
        plan = SupernetPlan(
            pruner=job.plugins.pruner,
            tables=self.space.tables(),
            patterns=self.space.patterns(),
            centre=self._centre,
            propagate="centre" if chosen == "start" else chosen,
            refresh=config.supernet.refresh,
            seed=config.study.seed,
        )
        subject, text = job.session.subject, job.session.text["calibration"]
        with (
            self._folder() as folder,
            job.monitor.stage("build supernet", len(subject.blocks)) as advance,
        ):
            return build(subject, text, plan, folder, advance)

    @cached_property
    def _centre(self) -> SparsityProfile:
        """What blocks see of those before them while the supernet is built.

        Near the profile that it is built around, a supernet scores what sequential pruning gives.
        A later stage's space lies around the result of the one before.
        """
        if self.job.config.supernet.propagate != "start" or not self.starts:
            return self.space.base
        return self.space.profile(self.space.nearest(self.starts[0]))

    def _folder(self) -> AbstractContextManager[SupernetFolder | None]:
        """Return where the supernet is kept; None is the memory."""
        keys = (
            *("model", "space", "text.calibration", "pruner", "propagate", "refresh"),
            *("seed", "dtype", "device", "threads", "torch"),
        )
        facts = {**{key: self.fingerprint[key] for key in keys}, "centre": self._centre.digest}
        settings = self.job.config.supernet
        if settings.cache is not None:
            return shared(Path(settings.cache), facts)
        on_disk = settings.store == "disk" or self.job.claims is not None  # for all workers
        return nullcontext(self._own_folder(facts) if on_disk else None)

    def _own_folder(self, facts: Mapping[str, Any]) -> SupernetFolder:
        """Return the folder in the run directory; a later stage's is around another result."""
        if not self.index:
            return SupernetFolder(self.job.out / "supernet", facts)
        path = self.job.out / f"supernet-stage{self.index + 1}"
        try:
            return SupernetFolder(path, facts)
        except RunMismatchError:  # more rounds have changed what the stage before found
            shutil.rmtree(path)
            return SupernetFolder(path, facts)


def _never(profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None) -> Score:
    """Stand for an objective where nothing is left to be measured."""
    raise AssertionError(f"{profile.digest} is to be measured on {fidelity}, after {known}")
