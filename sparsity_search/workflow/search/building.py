"""What the steps of a plan need: allocators, and configurations of studies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.given_profile import GivenProfile
from sparsity_search.engine.plugins import Plugins, build_allocator, build_final
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.plans.plan import UNIFORM, Plan, PlanStep
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.utils.shapes import describe_faults

#: Value of an allocator's setting that stands for the best profile so far.
_BEST = "best"


def check_plan(config: RunConfig, plan: Plan) -> None:
    """Check, before any work, that the plugins of all steps exist and take their settings.

    Raises:
        UnknownNameError: There is no such plugin.
        ConfigError: A plugin refuses its settings, or a study's settings are not legal.
    """
    pruner = Plugins.of(config).pruner
    for step in plan.steps:
        if step.allocate is not None:
            build_step_allocator(config, step)
        elif step.rebuild is not None:
            build_final(config, pruner, step.rebuild)
        else:
            Plugins.of(configure_study(config, step.search or {}))


def build_step_allocator(
    config: RunConfig, step: PlanStep, best: SparsityProfile | None = None
) -> Allocator:
    """Return the allocator of a step.

    Args:
        config: The configuration of the run.
        step: A step that allocates.
        best: The best profile so far, for an allocator that starts from it; the uniform one if
            there is none yet.

    Raises:
        UnknownNameError: There is no such allocator.
        ConfigError: It refuses its settings.
    """
    assert step.allocate is not None
    settings = dict(step.settings)
    if settings.get("start") == _BEST:
        settings["start"] = UNIFORM if best is None else GivenProfile(profile=best)
    return build_allocator(config, step.allocate, settings)


def configure_study(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a step's study: its settings under those of the user.

    Raises:
        ConfigError: The settings are not legal.
    """
    if not settings:
        return config
    try:
        return RunConfig.model_validate(_merge(settings, _list_set(config)))
    except ValidationError as error:
        raise ConfigError(f"a search in the plan: {describe_faults(error)}") from error


def _list_set(config: RunConfig) -> dict[str, Any]:
    """Return what the user set, section by section."""
    found = config.model_dump(exclude_unset=True)
    if "ladder" in found:  # a dataclass, which does not know what was set
        found |= config.model_dump(include={"ladder"}, exclude_defaults=True)
    return found


def _merge(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with settings on top, section by section."""
    merged = dict(config)
    for key, value in settings.items():
        inner = isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
        merged[key] = _merge(config[key], value) if inner else value
    return merged
