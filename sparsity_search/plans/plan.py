"""Plans of a search: its steps in their order, as YAML files by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from sparsity_search.config.presets import list_presets
from sparsity_search.config.schema import STUDY, PrunerSection, RunConfig, Section
from sparsity_search.errors import ConfigError, suggest_name, told_of
from sparsity_search.plans.methods import METHODS
from sparsity_search.utils.reading import read_yaml
from sparsity_search.utils.shapes import describe_faults

#: The baseline, which is a candidate of every search.
UNIFORM = "uniform"

#: Settings of the section ``study`` that describe one: who gives one wants this study alone.
_OF_STUDY = {"stages", "rounds", "workers"}


class PlanStep(Section):
    """One step of a plan: exactly one of starts, allocation, search and pruning anew.

    Attributes:
        starts: Allocators that need no search; each brings a candidate. Those that the user
            names (``initial``) replace them.
        allocate: An allocator, whose profile becomes a candidate. ``start: best`` among its
            settings means the best profile so far.
        settings: The allocator's settings.
        repeat: How often the step is made at most; it ends when it brings nothing better.
        search: Settings of a study that starts from the best profile so far, as sections of the
            configuration; what the user sets precedes them.
        rebuild: A pruner that prunes the best profile anew.
        why: What was measured, in words; a step without this is a guess.
    """

    starts: tuple[str, ...] | None = None
    allocate: str | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    repeat: int = Field(default=1, ge=1)
    search: dict[str, Any] | None = None
    rebuild: PrunerSection | None = None
    why: str = ""

    @property
    def allocation(self) -> str:
        """The allocator with its settings, as text that tells steps apart."""
        return self.model_dump_json(include={"allocate", "settings"})

    @property
    def title(self) -> str:
        """What it makes, for people."""
        if self.rebuild is not None:
            return f"the best, pruned anew with {self.rebuild.name}"
        return self.allocate or ", ".join(self.starts or ["search"])

    @field_validator("rebuild", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> PlanStep:
        given = [self.starts, self.allocate, self.search, self.rebuild]
        if sum(value is not None for value in given) != 1:
            raise ValueError("a step has exactly one of starts, allocate, search and rebuild")
        return self


class Plan(Section):
    """What a search does.

    Attributes:
        about: One line about it.
        pruner: Pruner of losses and supernets, unless the user names one; None for the default of
            the configuration. A supernet costs least with a pruner that updates no weights.
        finalise: Pruner that candidates are pruned with, as they would be shipped; None for the
            same. It gives way to the pruners that the user names, as do steps that prune anew.
        confidence: Confidence with which a paired one-sided t-test over the sequences of the
            final text has to find a candidate better than the best one so far, for it to replace
            that; None compares means alone.
        steps: The steps, in their order.
    """

    about: str = ""
    pruner: str | None = None
    finalise: str | None = None
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    steps: tuple[PlanStep, ...]


def list_plans() -> dict[str, str]:
    """Return all plans by name, sorted, and what each is."""
    names = sorted(file.stem for file in _get_folder().glob("*.yaml") if file.name != METHODS)
    return {name: load_plan(name).about for name in names}


def load_plan(name: str) -> Plan:
    """Return a plan.

    Args:
        name: Its name, or the path of a YAML file.

    Raises:
        ConfigError: There is no such plan, or its file is not legal.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _get_folder() / f"{name}.yaml"
        if path.name == METHODS or not path.is_file():
            known = suggest_name(name, [*list_plans(), *list_presets()])
            raise ConfigError(f"unknown plan {name!r}: {known}, or give a .yaml file")
    with told_of(f"--plan {path}"):
        value = read_yaml(path)
    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{path} is not a plan: {describe_faults(error)}") from error


def resolve_plan(config: RunConfig, kind: str) -> tuple[RunConfig, Plan]:
    """Return the plan of a search, and its configuration with the parts that the plan decides.

    Args:
        config: The configuration. Its plan is the one that it names; the plan `STUDY` if it
            describes a study; else the one of the kind.
        kind: Name of the plan for what is removed.

    Raises:
        ConfigError: There is no such plan, or its file is not legal.
    """
    by_hand = config.study.model_fields_set & _OF_STUDY
    name = config.plan or (STUDY if by_hand else kind)
    plan = load_plan(name)
    changes: dict[str, Any] = {}
    fixed = config.model_fields_set & {"pruner", "finalise"}
    if "pruner" not in fixed and plan.pruner is not None:
        changes["pruner"] = PrunerSection(name=plan.pruner)
    if not fixed and plan.finalise is not None:
        changes["finalise"] = PrunerSection(name=plan.finalise)
    if name != STUDY:
        changes["initial"] = []  # a study starts from the best candidate
    steps = _resolve_steps(config, plan.steps)
    return config.model_copy(update=changes), plan.model_copy(update={"steps": steps})


def choose_minutes(config: RunConfig, plan: Plan) -> float | None:
    """Return the time of a job in minutes; None if rounds alone limit it, as in its plan."""
    studies = [step.search.get("study", {}) for step in plan.steps if step.search is not None]
    if all("rounds" in study for study in studies):
        return config.study.minutes
    return config.study.time_limit


def _resolve_steps(config: RunConfig, steps: Sequence[PlanStep]) -> tuple[PlanStep, ...]:
    """Return steps with what the user fixed, each start as a step of its own."""
    named = config.initial if "initial" in config.model_fields_set else None
    pruners = config.model_fields_set & {"pruner", "finalise"}
    found: list[PlanStep] = []
    for step in steps:
        if step.starts is not None:
            names = step.starts if named is None else named
            found += [
                PlanStep(allocate=name, why="" if named else step.why)
                for name in dict.fromkeys(names)
                if name != UNIFORM
            ]
        elif step.rebuild is None or not pruners:
            found.append(step)
    return tuple(found)


def _get_folder() -> Path:
    return Path(str(files(__name__.rpartition(".")[0])))
