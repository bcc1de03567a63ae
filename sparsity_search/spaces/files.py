"""Search spaces from files: one YAML in `search_spaces/` is one space."""

from __future__ import annotations

from sparsity_search.spaces.level_file import SpaceFile, bounds_of
from sparsity_search.spaces.parametric_file import ParametricFile, has_parameters
from sparsity_search.spaces.reading import parse_space, read_space, space_names

__all__ = ["ParametricFile", "SpaceFile", "bounds_of", "load_space", "space_names"]


def load_space(name: str) -> SpaceFile | ParametricFile:
    """Return the file of a space by name, or from a path that ends in ``.yaml``.

    A file that names an allocator is a space of parameters, any other a space of levels.

    Raises:
        UnknownNameError: There is no such space or file; the message names the nearest.
        ConfigError: The file is not a legal space.
    """
    value = read_space(name)
    if has_parameters(value):
        return parse_space(ParametricFile, name, value)
    return parse_space(SpaceFile, name, value)
