"""Plugins by name: a file or folder in a plugin folder is the plugin, and its name is the name.

There is no list to keep. `Registry.names` reads the folder without importing anything, and
`Registry.get` imports only the plugin that is asked for. An installed package adds plugins by an
entry point in the group ``sparsity_search.pruners``, ``sparsity_search.allocators``, …; a name
with a colon (``package.module:Class``) loads a class from anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from sparsity_search.errors import (
    BrokenPluginWarning,
    ConfigError,
    ExperimentalWarning,
    SparsitySearchError,
    UnknownNameError,
    show_value,
    suggest_name,
    told_of,
)
from sparsity_search.utils.shapes import check_settings

T = TypeVar("T")

#: Ends of class names that say a plugin's kind; `describe` leaves them out.
_SUFFIXES = (
    *("Pruner", "Allocator", "Searcher", "Evaluator", "Sensitivity", "Measure", "Format"),
    *("Recovery", "Tracker"),
)
#: The folder next to the plugins for their shared base classes and mathematics.
_BASES = "bases"


class Registry(Generic[T]):
    """The plugins of one kind.

    Args:
        kind: What a plugin is called in messages, e.g. ``"pruner"``.
        package: The package whose files and folders are the plugins. The name of its folder is
            the name of the entry point group.
        interface: ``module:Class`` that every plugin inherits.
    """

    def __init__(self, kind: str, package: str, interface: str) -> None:
        self.kind = kind
        self.package = package
        self.interface = interface

    def names(self) -> list[str]:
        """Return all plugin names, sorted, without importing any plugin."""
        return sorted({*self._own_names(), *self._installed()})

    def get(self, name: str) -> type[T]:
        """Return the plugin class called ``name``, or ``package.module:Class`` from outside.

        Raises:
            UnknownNameError: No such plugin, and the message names the nearest; or a plugin from
                outside that cannot be loaded.
            ConfigError: The class from outside is no plugin of this kind.
        """
        if ":" in name:
            return self._outside(name, EntryPoint(name, name, self.group))
        if name in self._own_names():
            return self._only_class(importlib.import_module(f"{self.package}.{name}"))
        if name in self._installed():
            return self._outside(name, self._installed()[name])
        raise self._unknown(name)

    def check(self, name: str) -> None:
        """Check that a plugin of this name may exist, without importing it.

        Raises:
            UnknownNameError: There is none, and the message names the nearest.
        """
        if ":" not in name and name not in self.names():
            raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownNameError:
        return UnknownNameError(
            f"unknown {self.kind} {name!r}: {suggest_name(name, self.names())}"
        )

    def create(self, name: str, **settings: Any) -> T:
        """Construct the plugin called ``name`` with its default context, see `Factory.create`.

        Raises:
            UnknownNameError: No such plugin.
            ConfigError: The plugin has no such setting, or refuses its value.
        """
        return Factory().create(self, name, settings)

    def classes(self) -> dict[str, type[T]]:
        """Return every plugin class by name.

        An installed plugin that cannot be loaded is left out with a warning, so that it does not
        stop the others.
        """
        classes = {}
        for name in self.names():
            try:
                classes[name] = self.get(name)
            except SparsitySearchError as error:
                warnings.warn(str(error), BrokenPluginWarning, stacklevel=2)
        return classes

    def summaries(self) -> dict[str, str]:
        """Return the first line of each plugin's documentation with its settings, by name."""
        lines = {}
        for name, plugin in self.classes().items():
            fields = dataclasses.fields(plugin)  # type: ignore[arg-type]
            settings = ", ".join(f"{field.name}={_get_default(field)!r}" for field in fields)
            line = (plugin.__doc__ or "").strip().partition("\n")[0]
            tier = "experimental: " if is_experimental(plugin) else ""
            lines[name] = f"{tier}{line} [{settings}]" if settings else f"{tier}{line}"
        return lines

    def _own_names(self) -> list[str]:
        folder = importlib.import_module(self.package).__path__
        names = (module.name for module in pkgutil.iter_modules(folder))
        return [name for name in names if name != _BASES and not name.startswith("_")]

    @property
    def group(self) -> str:
        """The group of entry points, e.g. ``sparsity_search.pruners``."""
        return f"sparsity_search.{self.package.rpartition('.')[2]}"

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def base(self) -> type[T]:
        """Return the class that every plugin of this kind inherits."""
        return _load(self.interface)  # type: ignore[no-any-return]

    def _only_class(self, module: ModuleType) -> type[T]:
        classes = [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, self.base()) and member.__module__ == module.__name__
        ]
        if len(classes) != 1:
            name = self.interface.rpartition(":")[2]
            raise TypeError(f"{module.__name__} must define exactly one {name}")
        return classes[0]

    def _outside(self, name: str, point: EntryPoint) -> type[T]:
        home = f" of the package {point.dist.name}" if point.dist else ""
        try:
            if not point.pattern.match(point.value):
                raise ImportError(f"{point.value!r} must be MODULE:CLASS")
            plugin = point.load()
        except Exception as error:  # code from outside: it may raise anything
            raise UnknownNameError(f"cannot load {self.kind} {name!r}{home}: {error}") from error
        if not (inspect.isclass(plugin) and issubclass(plugin, self.base())):
            raise ConfigError(f"{name!r}{home} is not a {self.interface.rpartition(':')[2]}")
        if not hasattr(plugin, "__dataclass_fields__"):
            raise ConfigError(f"{self.kind} {name!r}{home} is not a dataclass")
        return plugin


@dataclasses.dataclass(frozen=True)
class Factory:
    """Builds plugins, and the plugins that are settings of other plugins, in one way.

    A setting takes the first value that is given: by the caller, in the section of the plugin's
    name, or shared by the run. Else the plugin has a default.

    Attributes:
        sections: Settings by plugin name, for each kind: ``{"allocator": {"owl": {"m": 5}}}``.
        shared: Settings of all plugins of a kind that have a field of that name:
            ``{"allocator": {"seed": 0}}``.
    """

    sections: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    shared: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def create(self, registry: Registry[T], name: str, settings: Mapping[str, Any]) -> T:
        """Construct the plugin called ``name``, with the plugins that its settings name.

        Lists become tuples, since plugins are frozen.

        Raises:
            UnknownNameError: There is no such plugin.
            ConfigError: The plugin has no such setting, or refuses its value.
        """
        plugin = registry.get(name)
        fields = {field.name: field for field in dataclasses.fields(plugin)}  # type: ignore[arg-type]
        shared = self.shared.get(registry.kind, {})
        given = {key: value for key, value in shared.items() if key in fields}
        given |= {**self.sections.get(registry.kind, {}).get(name, {}), **settings}
        for key in given:
            if key not in fields:
                hint = suggest_name(key, fields) if fields else "it has none"
                raise ConfigError(f"{registry.kind} {name!r} has no setting {key!r}: {hint}")
        kinds = {key: field.metadata.get("registry") for key, field in fields.items()}
        inner = self._without_section(registry.kind, name)
        for key, kind in kinds.items():
            if kind is None:
                continue
            default = fields[key].metadata["default"]
            value = given.get(key, default)
            if value is not None or default is not None:  # else the setting may be empty
                given[key] = inner.resolve(kind, value)
        if reason := getattr(plugin, "experimental", ""):
            warnings.warn(
                f"{registry.kind} {name!r} is experimental: {reason}",
                ExperimentalWarning,
                stacklevel=2,
            )
        with told_of(f"{registry.kind} {name!r}"):
            return _construct(plugin, {k: _convert(fields[k], v) for k, v in given.items()})

    def _without_section(self, kind: str, name: str) -> Factory:
        """Return the factory of nested plugins: a section that nests its own name applies once."""
        rest = {key: value for key, value in self.sections.get(kind, {}).items() if key != name}
        return dataclasses.replace(self, sections={**self.sections, kind: rest})

    def resolve(self, registry: Registry[T], value: object) -> T:
        """Return the plugin that a setting means.

        Args:
            registry: The kind of plugin.
            value: A plugin, its name, or its name and settings: ``{"name": …, …}``.

        Raises:
            UnknownNameError: There is no such plugin.
            ConfigError: The plugin refuses its settings, or the value is none of these.
        """
        if isinstance(value, registry.base()):
            return value
        if isinstance(value, str):
            return self.create(registry, value, {})
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{registry.kind} must be a name, or a name and settings, not {show_value(value)}"
            )
        settings = dict(value)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{registry.kind} with settings needs a name: {{name: …, …}}")
        return self.create(registry, name, settings)


def converted_field(convert: Callable[[Any], Any], default: Any) -> Any:
    """Declare a setting that users may write in several forms, as a dataclass field.

    `Factory` converts it before construction, so that the field always holds one form.

    Args:
        convert: Returns the setting in the form that the field holds.
        default: The default, in that form.
    """
    return dataclasses.field(default=default, metadata={"convert": convert})


def plugin_field(registry: Registry[Any], default: str | None) -> Any:
    """Declare a setting of a plugin that is another plugin, as a dataclass field.

    `Factory` builds it from a name, or a name and settings, so that the field always holds a
    plugin.

    Args:
        registry: The kind of plugin.
        default: Name of the default plugin; None if the setting may be empty.
    """
    metadata = {"registry": registry, "default": default}
    if default is None:
        return dataclasses.field(default=None, metadata=metadata)
    return dataclasses.field(default_factory=lambda: registry.create(default), metadata=metadata)


def describe(plugin: object) -> str:
    """Return a plugin and its settings as one line, which identifies it in records.

    The class name stands without its kind, so that renaming a kind changes no record. A plugin
    that is a dataclass without a generated ``repr`` is described by its own.

    >>> describe(PRUNERS.create("wanda"))
    "Wanda(pattern='row')"
    """
    generated = getattr(plugin, "__dataclass_params__", None)
    if not dataclasses.is_dataclass(plugin) or generated is None or not generated.repr:
        return repr(plugin)  # no plugin, or one with a text of its own
    name = type(plugin).__qualname__
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix) or name
    shown = [field.name for field in dataclasses.fields(plugin) if field.repr]
    return f"{name}({', '.join(f'{n}={describe(getattr(plugin, n))}' for n in shown)})"


def name_plugin(plugin: object) -> str:
    """Return the name that users know a plugin by: its file's, or its class from outside.

    >>> name_plugin(PRUNERS.create("flap"))
    'flap'
    """
    package, _, name = type(plugin).__module__.rpartition(".")
    own = package.startswith(f"{__package__}.")
    return name if own else type(plugin).__qualname__


def is_experimental(plugin: type) -> bool:
    """Whether a plugin class says that it loses to a simpler one in the project's tables."""
    return bool(getattr(plugin, "experimental", ""))


def to_tuples(value: Any) -> Any:
    """Return a setting with its lists as tuples, as frozen plugins need it."""
    return tuple(map(to_tuples, value)) if isinstance(value, list) else value


def _convert(field: dataclasses.Field[Any], value: Any) -> Any:
    convert = field.metadata.get("convert", to_tuples)
    try:
        return convert(value)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SparsitySearchError):
            raise
        raise ConfigError(f"{field.name} cannot be {show_value(value)}") from error


def _construct(plugin: type[T], settings: Mapping[str, Any]) -> T:
    """Construct a plugin whose settings have the types of its fields.

    Raises:
        ConfigError: A setting has another type, or the plugin refuses its value.
    """
    check_settings(plugin, settings)
    try:
        return plugin(**settings)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, SparsitySearchError):
            raise
        given = ", ".join(f"{key}={show_value(value)}" for key, value in settings.items())
        raise ConfigError(f"it cannot take {given}: {error}") from error


def _get_default(field: dataclasses.Field[Any]) -> Any:
    return field.metadata["default"] if "registry" in field.metadata else field.default


@cache
def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _build_registry(kind: str, package: str, interface: str) -> Registry[Any]:
    return Registry(kind, f"sparsity_search.{package}", f"sparsity_search.{interface}")


PRUNERS = _build_registry("pruner", "pruners", "interfaces.pruner:Pruner")
ALLOCATORS = _build_registry("allocator", "allocators", "interfaces.allocator:Allocator")
SEARCHERS = _build_registry("searcher", "searchers", "interfaces.searcher:Searcher")
EVALUATORS = _build_registry("evaluator", "evaluators", "interfaces.evaluator:Evaluator")
SENSITIVITIES = _build_registry(
    "sensitivity", "sensitivities", "interfaces.sensitivity:Sensitivity"
)
MEASURES = _build_registry("measure", "measures", "interfaces.measure:Measure")
FORMATS = _build_registry("format", "formats", "interfaces.format:Format")
TRACKERS = _build_registry("tracker", "trackers", "interfaces.tracker:Tracker")
RECOVERIES = _build_registry("recovery", "recoveries", "interfaces.recovery:Recovery")
UNITS = _build_registry("unit kind", "models.units", "models.anatomy.unit_kind:UnitKind")
#: All kinds by the name of their folder.
KINDS: Mapping[str, Registry[Any]] = {
    registry.package.rpartition(".")[2]: registry
    for registry in (
        *(PRUNERS, UNITS, ALLOCATORS, SENSITIVITIES, SEARCHERS, EVALUATORS, MEASURES, FORMATS),
        *(RECOVERIES, TRACKERS),
    )
}
