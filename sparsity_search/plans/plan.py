"""Plans of a search: its steps in their order, as YAML files by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from sparsity_search.config.schema import PrunerSection, RunConfig, Section
from sparsity_search.errors import ConfigError, suggest_name
from sparsity_search.utils.reading import read_yaml
from sparsity_search.utils.shapes import describe_faults

#: The plan of a search of single weights of which nothing is fixed by hand.
BEST = "best"

#: Sections of the configuration that describe a study: who sets one by hand gets a study.
_OF_STUDY = {"initial", "searcher", "hints", "space", "ladder", "supernet", "measure"}
#: The same of settings of the section ``study``.
_OF_STUDY_SECTION = {"stages", "rounds", "workers"}


class PlanStep(Section):
    """One step of a plan: exactly one of allocation, search and final pruning.

    Attributes:
        allocate: An allocator, whose profile becomes a candidate. ``start: best`` among its
            settings means the best profile so far.
        settings: The allocator's settings.
        repeat: How often the step is made at most; it ends when it brings nothing better.
        search: Settings of a study that starts from the best profile so far, as sections of the
            configuration.
        finalise: A pruner that rebuilds the best profile and the uniform one at the end.
        why: What was measured, in words.
    """

    allocate: str | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    repeat: int = Field(default=1, ge=1)
    search: dict[str, Any] | None = None
    finalise: str | None = None
    why: str = ""

    @model_validator(mode="after")
    def _check(self) -> PlanStep:
        given = [self.allocate, self.search, self.finalise]
        if sum(value is not None for value in given) != 1:
            raise ConfigError("a step has exactly one of allocate, search and finalise")
        return self


class Plan(Section):
    """What a search does.

    Attributes:
        about: One line about it.
        pruner: Pruner that candidates are rebuilt with, unless the user names one.
        confidence: Confidence with which a paired one-sided t-test over the sequences of the
            final text has to find a candidate better than the best one so far, for it to replace
            that; None compares means alone.
        steps: The steps, in their order.
    """

    about: str = ""
    pruner: str = "wanda"
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    steps: tuple[PlanStep, ...]


def list_plans() -> list[str]:
    """Return the names of all plans, sorted."""
    return sorted(file.stem for file in _get_folder().glob("*.yaml") if file.stem != "methods")


def load_plan(name: str) -> Plan:
    """Return a plan.

    Args:
        name: Its name, or the path of a YAML file.

    Raises:
        ConfigError: There is no such plan, or its file is not legal.
    """
    path = Path(name)
    if name in list_plans():
        path = _get_folder() / f"{name}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"unknown plan {name!r}: {suggest_name(name, list_plans())}, or give a .yaml file"
        )
    try:
        return Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path} is not a plan: {describe_faults(error)}") from error


def resolve_plan(config: RunConfig) -> tuple[RunConfig, Plan]:
    """Return the plan of a search, and its configuration with the parts that the plan decides.

    Raises:
        ConfigError: There is no such plan, or its file is not legal.
    """
    if config.plan is None and _is_fixed(config):
        return config, _build_study(config)
    plan = load_plan(config.plan or BEST)
    changes: dict[str, Any] = {"initial": []}
    if "pruner" not in config.model_fields_set:
        changes["pruner"] = PrunerSection(name=plan.pruner)
    if config.finalise is not None:
        last = PlanStep(finalise=config.finalise.name)
        steps = [last if step.finalise is not None else step for step in plan.steps]
        plan = plan.model_copy(update={"steps": tuple(steps)})
        changes["finalise"] = None
    return config.model_copy(update=changes), plan


def _is_fixed(config: RunConfig) -> bool:
    """Whether the user fixed a part of the study by hand, or removes no single weights."""
    sections = config.model_fields_set & _OF_STUDY
    of_section = config.study.model_fields_set & _OF_STUDY_SECTION
    others = {"pattern", "mask"} & config.pruner.parameters.keys()
    return bool(sections or of_section or others or config.budget.saving is not None)


def _build_study(config: RunConfig) -> Plan:
    """Return the plan of a study that the user describes: its starts, and the study."""
    starts = [PlanStep(allocate=name) for name in config.initial if name != "uniform"]
    return Plan(pruner=config.pruner.name, steps=(*starts, PlanStep(search={})))


def _get_folder() -> Path:
    return Path(str(files(__name__.rpartition(".")[0])))
