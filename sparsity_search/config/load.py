"""Configurations from files and options: one YAML, and options of the command line on top.

Unknown keys are refused, and all faults are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from sparsity_search.config.presets import get_preset_file, list_presets
from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import ConfigError, suggest_name

#: Sections that name a plugin.
_PLUGINS = ("pruner", "searcher", "evaluator", "sensitivity", "finalise", "measure")


def load_config(
    path: Path | None, options: Mapping[str, Any], overrides: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration of a file, with options and ``section.key=value`` on top.

    Args:
        path: A YAML file, the name of a preset, or none.
        options: Values by dotted key; those that are None are left out.
        overrides: ``section.key=value`` texts; values are read as YAML.

    Raises:
        ConfigError: Unreadable file, unknown key, or a value that is not legal; all faults of
            the configuration in one message.
    """
    nested: dict[str, Any] = _read(path) if path else {}
    for key, value in options.items():
        if value is not None:
            _assign(nested, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set needs section.key=value, not {override!r}")
        _assign(nested, key, _parse(text, override))
    for section in _PLUGINS:
        if isinstance(nested.get(section), str):
            nested[section] = {"name": nested[section]}
        elif isinstance(nested.get(section), dict):
            default = RunConfig.model_fields[section].default
            if default is not None:
                nested[section].setdefault("name", default.name)
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_describe_fault, error.errors()))) from error


def _read(path: Path) -> dict[str, Any]:
    """Return the contents of a file, or of the preset of that name."""
    if str(path) in list_presets():
        path = get_preset_file(str(path))
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no configuration: a YAML mapping is needed")
    return value


def _parse(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error


def _assign(nested: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = nested.setdefault(part, {})
        if isinstance(inner, str):  # a plugin by name alone
            inner = nested[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {part!r} is not a section")
        nested = inner
    is_plugin = key in {f"{section}.name" for section in _PLUGINS}
    if is_plugin and nested.get("name") not in (None, value):
        nested.clear()  # another plugin's hyper-parameters do not fit
    nested[last] = value


def _describe_fault(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key!r}: {suggest_name(location[-1], _list_keys(location[:-1]))}"
    if error["type"] == "value_error":  # of a class of the project, which says it all
        return f"{key}: {error['ctx']['error']}"
    return f"{key}: {error['msg']}, not {error['input']!r}"


def _list_keys(path: Sequence[str]) -> list[str]:
    """Return the keys of the section at a path of keys and of places in lists."""
    section: Any = RunConfig
    for part in path:
        if not part.isdigit():  # else an item of the list whose item type `section` is already
            annotation = _list_types(section)[part]
            section = next(iter(get_args(annotation)), annotation)
    return list(_list_types(section))


def _list_types(section: Any) -> dict[str, Any]:
    """Return the type of each field of a section, which is a model or a dataclass."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    types = get_type_hints(section)
    return {field.name: types[field.name] for field in fields(section)}
