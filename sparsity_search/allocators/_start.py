"""Allocators that start from what another one finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsity_search.allocators.base import Allocator
from sparsity_search.errors import ConfigError
from sparsity_search.registry import ALLOCATORS


def as_allocator(value: Allocator | str | Mapping[str, Any]) -> Allocator:
    """Return the allocator that a setting names.

    Args:
        value: An allocator, a plugin's name, or its name and settings: ``{"name": …, …}``.

    Raises:
        UnknownNameError: There is no such allocator.
        ConfigError: It refuses its settings, or the value is none of these.
    """
    if isinstance(value, Allocator):
        return value
    if not isinstance(value, (str, Mapping)):
        raise ConfigError(f"start must be a name, or a name and settings, not {value!r}")
    settings = {"name": value} if isinstance(value, str) else dict(value)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("a start with settings needs a name, e.g. {name: cfsp}")
    found: Allocator = ALLOCATORS.create(name, **settings)
    return found
