"""Configurations from files and options: one YAML, and options of the command line on top.

Unknown keys are refused, and all faults are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from sparsity_search.config.presets import get_preset_file, list_presets
from sparsity_search.config.schema import STUDY, RunConfig, flatten
from sparsity_search.errors import (
    ConfigError,
    show_value,
    suggest_name,
    told_of,
)
from sparsity_search.registry import (
    ALLOCATORS,
    EVALUATORS,
    PRUNERS,
    RECOVERIES,
    SEARCHERS,
    SENSITIVITIES,
    Registry,
)
from sparsity_search.utils.reading import check_plain, parse_yaml, read_yaml
from sparsity_search.utils.shapes import describe_fault, describe_faults

#: Sections that name a plugin.
_PLUGINS = (
    *("pruner", "searcher", "evaluator", "sensitivity", "finalise", "measure"),
    "recovery",
)


#: Registries of sections whose name cannot be a file.
_REGISTRIES: Mapping[str, Registry[Any]] = {
    "pruner": PRUNERS,
    "finalise": PRUNERS,
    "searcher": SEARCHERS,
    "evaluator": EVALUATORS,
    "sensitivity": SENSITIVITIES,
    "recovery": RECOVERIES,
}


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
        key, value = parse_setting(override, "section.key=value")
        _assign(nested, key, value)
    if nested.get("plan") in list_presets():
        nested = _read_as_plan(nested)
    check_plain(nested)
    _check_allocators(nested.get("allocators"))
    for section in _PLUGINS:
        if isinstance(nested.get(section), str):
            nested[section] = {"name": nested[section]}
        elif isinstance(nested.get(section), dict):
            default = RunConfig.model_fields[section].default
            if default is not None:
                nested[section].setdefault("name", default.name)
    try:
        config = RunConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(describe_faults(error, describe=_describe_fault)) from error
    _check_names(config)
    return config


def parse_setting(text: str, form: str) -> tuple[str, Any]:
    """Return the key and the value of a text ``key=value``; the value is YAML.

    Args:
        text: The text, as given to ``--set``.
        form: How it should look, for the message.

    Raises:
        ConfigError: The text has no key or no value, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set needs {form}, not {show_value(text)}")
    with told_of(f"--set {key}"):
        return key, parse_yaml(value)


def _read(path: Path) -> dict[str, Any]:
    """Return the contents of a file, or of the preset of that name."""
    if str(path) in list_presets():
        path = get_preset_file(str(path))
    elif not path.suffix and not path.exists():
        known = suggest_name(str(path), list_presets())
        raise ConfigError(f"unknown preset {str(path)!r}: {known}, or give a .yaml file")
    with told_of(f"--config {path}"):
        value = read_yaml(path)
    if value is None:  # an empty file
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no configuration: a YAML mapping is needed")
    return value


def _read_as_plan(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preset that a configuration names as its plan, with its own settings on top."""
    preset = _read(Path(nested["plan"]))
    for key, value in flatten({**nested, "plan": STUDY}).items():
        _assign(preset, key, value)
    return preset


def _check_names(config: RunConfig) -> None:
    """Check that plugins exist by their names, before torch is imported for them."""
    for section, registry in _REGISTRIES.items():
        chosen = getattr(config, section)
        if chosen is not None:
            registry.check(chosen.name)


def _check_allocators(sections: Any) -> None:
    """Check that sections of allocators have names of allocators, also of those not used."""
    for name in sections if isinstance(sections, dict) else ():
        known = ALLOCATORS.names()
        if str(name) not in known and ":" not in str(name):
            raise ConfigError(
                f"unknown key {f'allocators.{name}'!r}: {suggest_name(str(name), known)}"
            )


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
    return f"{key}: {error['msg']}" if error["type"] == "missing" else describe_fault(error)


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
