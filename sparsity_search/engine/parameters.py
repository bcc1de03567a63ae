"""The space that a search's study is in: of levels, or of an allocator's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.job import Job
from sparsity_search.engine.plugins import allocator
from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.files import ParametricFile, load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.parametric import ParametricSpace, compose, value_at


def check_parameters(config: RunConfig) -> None:
    """Check, before any work, that a space of parameters can be searched.

    Raises:
        UnknownNameError: There is no such allocator.
        ConfigError: It has no such setting or refuses the one that the study starts from, or the
            search has stages.
    """
    file = load_space(config.space)
    if not isinstance(file, ParametricFile):
        return
    if config.study.stages > 1:
        raise ConfigError(f"{config.space!r} has parameters and no levels: leave out --stages")
    default = allocator(config, file.allocator)
    start = {
        p.name: p.values[p.nearest(value_at(default, p.name))] for p in file.build_parameters()
    }
    allocator(config, file.allocator, compose(file.settings, start))


def parametric_space(
    job: Job, space: SearchSpace, dense: Callable[[], None]
) -> ParametricSpace | None:
    """Return the space of parameters over one of levels; None if the search is in levels.

    Args:
        job: The search.
        space: The space of levels that profiles are rounded to.
        dense: Gives the model its dense weights; called before each allocation.
    """
    file = load_space(job.config.space)
    if not isinstance(file, ParametricFile):
        return None

    def allocate(settings: Mapping[str, Any]) -> SparsityProfile:
        plugin = allocator(job.config, file.allocator, settings)
        dense()
        text, bounds = job.session.text["calibration"], allocation_bounds(space)
        return plugin.allocate(job.session.subject, text, space.budget, bounds)

    return file.build(space, allocate, allocator(job.config, file.allocator))


def allocation_bounds(space: SearchSpace) -> Bounds:
    """Return the bounds of an allocator whose profile is rounded to a space.

    Among options or with prices its numbers are taken as savings: limits of zeros do not bound
    them.
    """
    if space.in_weights:
        return space.bounds
    return Bounds(lower=0 * space.layout.counts, upper=space.layout.counts)
