"""Reading YAML files of spaces, by name or path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sparsity_search.errors import ConfigError, UnknownNameError, suggest_name, told_of
from sparsity_search.utils.reading import read_yaml
from sparsity_search.utils.shapes import describe_faults

T = TypeVar("T", bound=BaseModel)


def space_names() -> list[str]:
    """Return the names of the spaces that come with the package, sorted."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def read_space(name: str) -> Any:
    """Return the contents of a space's file.

    Args:
        name: Name of a space, or a path that ends in ``.yaml``.

    Raises:
        UnknownNameError: There is no such space or file; the message names the nearest.
        ConfigError: The file is not YAML.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"
    if not path.is_file():
        raise UnknownNameError(f"unknown space {name!r}: {suggest_name(name, space_names())}")
    with told_of(f"space {name!r}"):
        return read_yaml(path)


def parse_space(kind: type[T], name: str, value: Any) -> T:
    """Return the model of a space's file from its contents.

    Raises:
        ConfigError: The file is not a legal space; the message names all faults.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"space {name!r}: {describe_faults(error)}") from error


def _folder() -> Path:
    """Return the spaces' folder: package data when installed, the top level in a checkout."""
    package = Path(str(files("sparsity_search")))
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"
