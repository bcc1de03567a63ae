"""The space of a search's study: levels, or an allocator's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.plugins import build_allocator
from sparsity_search.engine.session import Session
from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.files import ParametricFile, SpaceFile
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.parametric import ParametricSpace, compose, get_value


def check_parameters(config: RunConfig, file: SpaceFile | ParametricFile) -> None:
    """Check, before any work, that a space of parameters can be searched.

    Args:
        config: Configuration of the search.
        file: The space's file; a space of levels always passes.

    Raises:
        UnknownNameError: There is no such allocator.
        ConfigError: The allocator has no such setting or refuses the initial one, or the search
            has stages.
    """
    if not isinstance(file, ParametricFile):
        return
    if config.study.stages > 1:
        raise ConfigError(f"{config.space!r} has parameters and no levels: leave out --stages")
    default = build_allocator(config, file.allocator)
    start = {
        p.name: p.values[p.nearest(get_value(default, p.name))] for p in file.build_parameters()
    }
    build_allocator(config, file.allocator, compose(file.settings, start))


def build_parametric_space(
    config: RunConfig,
    file: SpaceFile | ParametricFile,
    session: Session,
    space: SearchSpace,
    make_dense: Callable[[], None],
) -> ParametricSpace | None:
    """Return the space of parameters over one of levels; None if the search is in levels.

    Args:
        config: Configuration of the search.
        file: The space's file.
        session: Model and text.
        space: The space of levels that profiles are rounded to.
        make_dense: Function that restores the dense weights, called before each allocation.
    """
    if not isinstance(file, ParametricFile):
        return None

    def allocate(settings: Mapping[str, Any]) -> SparsityProfile:
        plugin = build_allocator(config, file.allocator, settings)
        make_dense()
        text, bounds = session.text["calibration"], get_allocation_bounds(space)
        return plugin.allocate(session.subject, text, space.budget, bounds)

    return file.build(space, allocate, build_allocator(config, file.allocator))


def get_allocation_bounds(space: SearchSpace) -> Bounds:
    """Return the bounds of an allocator whose profile is rounded to a space.

    With options or prices, the allocator's counts are savings, so limits of zeros do not apply.
    """
    if space.in_weights:
        return space.bounds
    return Bounds(lower=0 * space.layout.counts, upper=space.layout.counts)
