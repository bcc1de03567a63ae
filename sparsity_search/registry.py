"""Plugins by name: a file in a plugin folder is the plugin, its file name is the name.

There is no list to keep: `names()` reads the folder without importing anything, `get()` imports
the one file that is asked for. A name with a colon (`package.module:Class`) loads from outside.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, Generic, TypeVar

from sparsity_search.errors import ConfigError, UnknownNameError, nearest

T = TypeVar("T")

#: Files of a plugin folder that are not plugins themselves.
_INFRASTRUCTURE = frozenset({"base"})


class Registry(Generic[T]):
    """The plugins of one kind, found in one package.

    Args:
        kind: What a plugin is called in messages, e.g. ``"pruner"``.
        package: The package whose files are the plugins. It must have a ``base`` module that
            holds ``base_name``, the class that every plugin inherits.
        base_name: Name of that class.
    """

    def __init__(self, kind: str, package: str, base_name: str) -> None:
        self.kind = kind
        self.package = package
        self.base_name = base_name

    def names(self) -> list[str]:
        """Return all plugin names, sorted, without importing any plugin."""
        folder = importlib.import_module(self.package).__path__
        found = (module.name for module in pkgutil.iter_modules(folder))
        return sorted(n for n in found if n not in _INFRASTRUCTURE and not n.startswith("_"))

    def get(self, name: str) -> type[T]:
        """Return the plugin class called ``name``, or ``package.module:Class`` from outside.

        Raises:
            UnknownNameError: No such plugin; the message names the nearest.
        """
        if ":" in name:
            return self._outside(name)
        if name not in self.names():
            raise UnknownNameError(f"unknown {self.kind} {name!r}: {nearest(name, self.names())}")
        module = importlib.import_module(f"{self.package}.{name}")
        return self._only_class(module)

    def create(self, name: str, **parameters: Any) -> T:
        """Construct the plugin called ``name`` with hyper-parameters.

        Raises:
            UnknownNameError: No such plugin.
            ConfigError: The plugin has no such hyper-parameter, or refuses its value.
        """
        plugin = self.get(name)
        known = {field.name for field in dataclasses.fields(plugin)}  # type: ignore[arg-type]
        for key in parameters:
            if key not in known:
                hint = nearest(key, known) if known else "it has none"
                raise ConfigError(f"{self.kind} {name!r} has no setting {key!r}: {hint}")
        try:
            return plugin(**parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} {name!r}: {error}") from error

    def given(self, value: T | str | Mapping[str, Any]) -> T:
        """Return the plugin that a setting of another plugin names.

        Args:
            value: A plugin, its name, or its name and settings: ``{"name": …, …}``.

        Raises:
            UnknownNameError: There is no such plugin.
            ConfigError: It refuses its settings, or the value is none of these.
        """
        if isinstance(value, self._base()):
            return value
        if not isinstance(value, (str, Mapping)):
            raise ConfigError(f"{self.kind} must be a name, or a name and settings, not {value!r}")
        settings = {"name": value} if isinstance(value, str) else dict(value)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind} with settings needs a name: {{name: …, …}}")
        return self.create(name, **settings)

    def summaries(self) -> dict[str, str]:
        """Return the first line of each plugin's documentation with its settings, by name."""
        found = {}
        for name in self.names():
            plugin = self.get(name)
            fields = dataclasses.fields(plugin)  # type: ignore[arg-type]
            settings = ", ".join(f"{f.name}={f.default!r}" for f in fields)
            line = (plugin.__doc__ or "").strip().partition("\n")[0]
            found[name] = f"{line} [{settings}]" if settings else line
        return found

    def _base(self) -> type[T]:
        return _load(f"{self.package}.base", self.base_name)  # type: ignore[no-any-return]

    def _only_class(self, module: ModuleType) -> type[T]:
        found = [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, self._base()) and member.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise TypeError(f"{module.__name__} must define exactly one {self.base_name}")
        return found[0]

    def _outside(self, name: str) -> type[T]:
        module_name, _, class_name = name.partition(":")
        try:
            plugin = _load(module_name, class_name)
        except (ImportError, AttributeError) as error:
            raise UnknownNameError(f"cannot load {self.kind} {name!r}: {error}") from error
        if not (inspect.isclass(plugin) and issubclass(plugin, self._base())):
            raise ConfigError(f"{name!r} is not a {self.base_name}")
        return plugin


@cache
def _load(module_name: str, attribute: str) -> Any:
    return getattr(importlib.import_module(module_name), attribute)


PRUNERS: Registry[Any] = Registry("pruner", "sparsity_search.pruners", "Pruner")
ALLOCATORS: Registry[Any] = Registry("allocator", "sparsity_search.allocators", "Allocator")
SEARCHERS: Registry[Any] = Registry("searcher", "sparsity_search.searchers", "Searcher")
EVALUATORS: Registry[Any] = Registry("evaluator", "sparsity_search.evaluators", "Evaluator")
UNITS: Registry[Any] = Registry("unit kind", "sparsity_search.models.units", "UnitKind")
SENSITIVITIES: Registry[Any] = Registry(
    "sensitivity", "sparsity_search.sensitivity", "Sensitivity"
)
FORMATS: Registry[Any] = Registry("format", "sparsity_search.formats", "Format")
MEASURES: Registry[Any] = Registry("measure", "sparsity_search.measures", "Measure")
