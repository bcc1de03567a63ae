from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

import sparsity_search.workflow.search.steps as steps_module
from sparsity_search.allocators.owl import OWLAllocator
from sparsity_search.allocators.uniform import UniformAllocator as Uniform
from sparsity_search.engine.job import SearchJob
from sparsity_search.errors import ConfigError
from sparsity_search.plans.plan import Plan, PlanStep
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.trail import Trail
from sparsity_search.workflow.search.clock import Clock
from sparsity_search.workflow.search.steps import PlanRun


@dataclass
class Prices:
    """Costs with a digit for each thing."""

    save: float = 1.0
    memory: int = 3 * 2**29

    def judge(self, pruner: str = "") -> float:
        return 10.0 if pruner else 100.0

    def allocate(self, step: PlanStep) -> float:
        del step
        return 1000.0

    def copies(self, step: PlanStep) -> int:
        return 141 * 2**29 if step.allocate == "pq_index" else 0

    def prepare_search(self) -> float:
        return 1000.0

    def begin_search(self) -> float:
        return 10000.0

    def observe(self, seconds: float, pruner: str = "") -> None:
        """Learn nothing."""


class StoppedClock(Clock):
    """A clock that stands still."""

    @property
    def left(self) -> float:
        return self.limit


def run(job: SearchJob, steps: list[dict[str, Any]], left: float, **plan: Any) -> PlanRun:
    """Run a plan with fixed costs while the clock shows a number of seconds."""
    trail = Trail(job.directory.steps_file, job.space.layout)
    found = Plan.model_validate({"steps": steps, **plan})
    made = PlanRun(job, found, StoppedClock(left / 60), trail, Prices(), lambda *_: None)  # type: ignore[arg-type]
    with job.directory.lock():
        made.run()
    return made


def test_a_step_without_time_is_noted(job: SearchJob) -> None:
    made = run(job, [{"allocate": "owl"}, {"search": {}}, {"rebuild": "sparsegpt"}], 1010)
    assert [record.name for record in made.records] == ["uniform", "uniform-sparsegpt"]
    assert made.skipped == [
        "owl: no time for it and what follows, 1010 s are left",
        "search: no time is left",
    ]


@pytest.mark.parametrize(("left", "fits"), [(10.7, False), (10.9, True)])
def test_a_last_pruning_may_be_a_little_late(job: SearchJob, left: float, fits: bool) -> None:
    """It takes 11 s."""
    assert (len(run(job, [{"rebuild": "sparsegpt"}], left).records) == 2) == fits


@pytest.mark.parametrize(("free", "fits"), [(70, False), (71, True)])
def test_an_allocation_needs_room_for_its_copies(
    job: SearchJob, free: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free * 2**30))
    made = run(job, [{"allocate": "pq_index"}], 1e6)
    assert [record.name for record in made.records] == ["uniform", *["pq_index"] * fits]
    told = [line for line in made.skipped if line.startswith("pq_index: 70.5 GiB are")]
    assert bool(told) != fits


@pytest.mark.parametrize(("gib", "fits"), [(1.4, False), (1.6, True)])
def test_a_search_needs_memory(
    job: SearchJob, gib: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "measure_memory", lambda _: gib * 2**30)
    made = run(job, [{"search": {"study": {"rounds": 1}}}], 1e6)
    told = [line for line in made.skipped if line.startswith("search: 1.5 GiB of 1.4 are needed")]
    assert bool(told) != fits


def refuse(*_: object) -> Any:
    raise ConfigError("this method needs units in linear layers")


@pytest.mark.parametrize("step", [{"allocate": "owl"}, {"search": {"hints": ["gradients"]}}])
def test_a_step_that_the_model_does_not_allow_is_noted(
    job: SearchJob, step: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan chose it, not the user; what is there already counts, and later steps go on."""
    monkeypatch.setattr(PlanRun, "_search", refuse)
    monkeypatch.setattr(OWLAllocator, "propose", refuse)
    made = run(job, [step, {"rebuild": "sparsegpt"}], 1e6)
    assert [record.name for record in made.records] == ["uniform", "uniform-sparsegpt"]
    title = step.get("allocate", "search")
    assert made.skipped == [f"{title}: this method needs units in linear layers"]


def test_a_plan_in_a_mixture(mixture_job: SearchJob) -> None:
    """Its experts are no linear layers. The search ended there, with nothing shipped."""
    hints = []
    steps = [{"allocate": "gauss_newton"}, {"search": {"hints": ["gradients", "fisher"]}}]
    made = PlanRun(
        mixture_job,
        Plan.model_validate({"steps": steps}),
        StoppedClock(1e6),
        Trail(mixture_job.directory.steps_file, mixture_job.space.layout),
        Prices(),  # type: ignore[arg-type]
        lambda begun, _: hints.append(begun.config.hints),
    )
    with mixture_job.directory.lock():
        made.run()
    assert hints == [["fisher"]]
    told = "this method needs units in linear layers: leave experts out with --exclude"
    assert made.skipped == [f"gauss_newton: {told}"]


def test_what_the_user_describes_is_not_left_out(
    job: SearchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlanRun, "_search", refuse)
    with pytest.raises(ConfigError, match="needs units in linear layers"):
        run(job, [{"search": {}}], 1e6)


def test_a_study_has_the_time_that_all_else_leaves(job: SearchJob) -> None:
    """Of 20,111 s: 1,000 of preparation, 100 to judge, 10 to prune anew and 1 to save."""
    minutes = []
    steps = [{"search": {}}, {"rebuild": "sparsegpt"}]
    made = PlanRun(
        job,
        Plan.model_validate({"steps": steps}),
        StoppedClock(20111 / 60),
        Trail(job.directory.steps_file, job.space.layout),
        Prices(),  # type: ignore[arg-type]
        lambda begun, _: minutes.append(begun.config.study.minutes),
    )
    with job.directory.lock():
        made.run()
    assert minutes == [pytest.approx(19000 / 60)]


#: Starts that take too long, and those that the study then has.
_BEGINS = [((), ["owl", "lamp"]), (("owl",), ["lamp"]), (("owl", "lamp"), ["uniform"])]


@pytest.mark.parametrize(("dear", "begins"), _BEGINS)
def test_a_study_begins_with_the_starts_that_there_was_time_for(
    job: SearchJob, dear: tuple[str, ...], begins: list[str]
) -> None:
    @dataclass
    class Dear(Prices):
        def allocate(self, step: PlanStep) -> float:
            return 1e9 if step.allocate in dear else 1.0

    seen: list[list[str]] = []

    def study(_: SearchJob, starts: Mapping[str, SparsityProfile]) -> None:
        seen.append(list(starts))

    named = replace(
        job, plugins=replace(job.plugins, initial={"owl": Uniform(), "lamp": Uniform()})
    )
    trail = Trail(job.directory.steps_file, job.space.layout)
    steps = [{"allocate": "owl"}, {"allocate": "lamp"}, {"search": {"study": {"rounds": 1}}}]
    found, clock = Plan.model_validate({"steps": steps}), StoppedClock(1e6)
    made = PlanRun(named, found, clock, trail, Dear(), study)  # type: ignore[arg-type]
    with job.directory.lock():
        made.run()
    assert seen == [begins]


def test_a_profile_is_known_with_the_pruners_that_it_was_judged_with_alone(job: SearchJob) -> None:
    """It was taken for known with all pruners, and pruned anew without time."""
    first = run(job, [{"rebuild": "sparsegpt"}], 11)
    again = run(job, [{"rebuild": "sparsegpt"}, {"rebuild": "ria"}], 10)
    assert [record.name for record in first.records] == ["uniform", "uniform-sparsegpt"]
    assert [record.name for record in again.records] == ["uniform", "uniform-sparsegpt"]
    assert again.skipped == ["uniform-ria: 11 s are needed to the end, 10 s are left"]
    assert [r.parts for r in again.records] == [r.parts for r in first.records]


def test_a_session_that_judges_nothing_adds_no_time(job: SearchJob) -> None:
    made = run(job, [{"allocate": "owl"}], 1e6)
    again = run(job, [{"allocate": "owl"}], 1e6)
    assert made.seconds > 0
    assert again.seconds == again.trail.seconds == made.trail.seconds
    more = run(job, [{"allocate": "owl"}, {"allocate": "lamp"}], 1e6)
    assert more.seconds == pytest.approx(more.clock.elapsed, abs=0.1)
    assert more.seconds > 0


def test_what_is_worse_replaces_nothing(job: SearchJob) -> None:
    steps = [{"allocate": name} for name in ("global_magnitude", "owl", "lamp", "er")]
    made = run(job, steps, 1e6)
    scores, best = [record.row["score"] for record in made.records], float("inf")
    assert len(scores) == 5
    for record, score in zip(made.records, scores, strict=True):
        assert record.best == (score < best)
        best = min(best, score)
    assert made.best.row["score"] == min(scores)


def test_turns_read_other_text_and_end_without_a_gain(job: SearchJob) -> None:
    made = run(job, [{"allocate": "gauss_newton", "repeat": 3}], 1e6)
    names = [record.name for record in made.records]
    turns = ["gauss_newton", "gauss_newton-2", "gauss_newton-3"]
    assert names[1:] == turns[: len(names) - 1]
    profiles = [record.profile for record in made.records]
    assert len(names) == 2 or profiles[1] != profiles[2]
    assert len(names) == 4 or not made.records[-1].best


def test_the_uniform_profile_is_pruned_as_the_shipped_one(job: SearchJob) -> None:
    made = run(job, [{"allocate": "owl"}, {"rebuild": "sparsegpt"}, {"rebuild": "ria"}], 1e6)
    shipped = made.best
    assert shipped.pruner["name"] != "magnitude"
    beside = [r for r in made.records if r.pruner == shipped.pruner]
    assert made.records[0].profile in [record.profile for record in beside]
