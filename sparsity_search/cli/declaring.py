"""How commands declare options and read them; `options` has those that several share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.cli.output import tell_loading
from sparsity_search.errors import ConfigError, show_value, told_of
from sparsity_search.utils.files import check_writable

if TYPE_CHECKING:
    from sparsity_search.config.schema import RunConfig
    from sparsity_search.interfaces.tracker import Tracker
    from sparsity_search.profiles.profile import SparsityProfile

#: What a command returns: its result, which ``--json`` prints.
Result = dict[str, Any]

#: Names of the options of the configuration itself, and the key of the model.
FILE, OVERRIDES, _MODEL = "config", "set_", "model.name"
#: Default of an option that must be given.
REQUIRED = inspect.Parameter.empty


def check_file(path: Path | None) -> Path | None:
    """Return the value of ``--out`` if a file can be written there.

    Raises:
        ConfigError: It cannot; a command finds that before its work.
    """
    if path is not None and path.is_dir():
        raise ConfigError(f"--out {path} is a folder; name a file")
    return check_out(path)


def check_folder(path: Path | None) -> Path | None:
    """Return the value of ``--out`` if a folder can be written there.

    Raises:
        ConfigError: It cannot; a command finds that before its work.
    """
    if path is not None and path.is_file():
        raise ConfigError(f"--out {path} is a file; name a folder")
    return check_out(path)


def check_out(path: Path | None) -> Path | None:
    """Return the value of ``--out`` if a file or a folder can be written there.

    Raises:
        ConfigError: It cannot; a command finds that before its work.
    """
    if path is not None:
        with told_of("--out"):
            check_writable(path)
    return path


@dataclass(frozen=True)
class Option:
    """An option of commands that sets a key of the configuration.

    Attributes:
        name: Its parameter: ``trust_remote_code`` is ``--trust-remote-code``.
        key: Key of the configuration; ``""`` if it sets none itself.
        kind: Its type, annotated for typer.
        default: Its value if it is not given.
        parse: Returns the value of the key.
    """

    name: str
    key: str
    kind: Any
    default: Any = None
    parse: Callable[[Any], Any] = field(default=lambda value: value)

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter that a command would declare for it."""
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.name, kind, default=self.default, annotation=self.kind)


@dataclass(frozen=True)
class Given:
    """The values of a command's shared options.

    Attributes:
        options: The options.
        values: Their values by name, as the user gave them.
    """

    options: Sequence[Option]
    values: Mapping[str, Any]

    def load(self, changes: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the configuration that the options mean.

        Args:
            changes: Values by key of the configuration, in place of those of options.

        Raises:
            ConfigError: An option is not legal.
            ModelError: There is no such model.
        """
        from sparsity_search.config.load import load_config

        keys = {o.key: o.parse(self.values[o.name]) for o in self.options if o.key}
        overrides = self.values.get(OVERRIDES) or []
        config = load_config(self.values.get(FILE), {**keys, **(changes or {})}, overrides)
        if any(option.key == _MODEL and self.values[option.name] for option in self.options):
            # before torch is imported, which takes seconds
            from sparsity_search.cli.early import check_early
            from sparsity_search.models.io.locating import locate

            check_early(config, keys)
            locate(config.model.name, config.model.revision)
            tell_loading()
        return config


def takes(*options: Option) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Add shared options to a command, which gets them as its first argument, a `Given`."""

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(command)
        def run(**values: Any) -> Result:
            shared = {option.name: values.pop(option.name) for option in options}
            return command(Given(options, shared), **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        others = [option.parameter for option in options]
        parameters = [p for p in others if p.default is REQUIRED]  # the model comes first
        parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        parameters += [p for p in others if p.default is not REQUIRED]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def check_push(repo: str | None) -> None:
    """Check that a checkpoint can be uploaded, before any work.

    Raises:
        ConfigError: The name of the repository is not legal, or there is no token.
        MachineError: The hub cannot be reached.
    """
    if repo is not None:
        from sparsity_search.models.io.publishing import check_hub

        check_hub(repo)


def build_trackers(names: Sequence[str] | None) -> list[Tracker]:
    """Return trackers by their names, each once; their tools are installed.

    Raises:
        UnknownNameError: There is no such tracker.
        MissingExtraError: A tool is not installed.
    """
    from sparsity_search.registry import TRACKERS

    found = [TRACKERS.create(name) for name in dict.fromkeys(names or ())]
    for tracker in found:
        tracker.check()
    return found


def count_removed(profile: SparsityProfile) -> Result:
    """Return what a profile removes, for a command's result."""
    layout = profile.layout
    return {
        "removed": profile.n_removed,
        "weights": layout.n_weights,
        "sparsity": profile.sparsity,
    }


def parse_bounds(texts: Sequence[str] | None) -> dict[str, tuple[float, float]] | None:
    """Return sparsity limits by role from ``ROLE=LOW:HIGH`` texts.

    Raises:
        ConfigError: A text is not of that form.

    >>> parse_bounds(["q=0.2:0.8"])
    {'q': (0.2, 0.8)}
    """
    if not texts:
        return None
    bounds = {}
    for text in texts:
        role, _, limits = text.partition("=")
        low, _, high = limits.partition(":")
        try:
            bounds[role] = (float(low), float(high))
        except ValueError as error:
            raise ConfigError(f"--bounds needs ROLE=LOW:HIGH, not {show_value(text)}") from error
    return bounds


def parse_fractions(text: str) -> list[float]:
    """Return the numbers in a text that commas part.

    Raises:
        ConfigError: A part is no number.

    >>> parse_fractions("0.5,0.7")
    [0.5, 0.7]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--sparsity needs numbers like 0.5,0.6, not {show_value(text)}"
        ) from error


def split_names(option: str) -> Callable[[str | None], list[str] | None]:
    """Return what reads the value of an option: names parted by commas.

    Raises:
        ConfigError: A name is empty.
    """

    def split(text: str | None) -> list[str] | None:
        names = None if text is None else [name.strip() for name in text.split(",")]
        if names is not None and not all(names):
            raise ConfigError(f"{option} needs names parted by commas, not {show_value(text)}")
        return names

    return split


def declare(
    name: str,
    key: str,
    help_: str,
    kind: type = str,
    *,
    panel: str | None = None,
    metavar: str | None = None,
    names: Callable[[], Iterable[str]] | None = None,
) -> Option:
    """Return an option; ``names`` lists values for the shell, ``panel`` is a part of the help."""

    def complete(begun: str) -> list[str]:
        return [value for value in (names or tuple)() if value.startswith(begun)]

    declared = typer.Option(
        help=help_,
        metavar=metavar,
        rich_help_panel=panel,
        autocompletion=complete if names else None,
    )
    return Option(name, key, Annotated[kind | None, declared])


def declare_flag(name: str, key: str, help_: str, *, panel: str | None = None) -> Option:
    """Return an option without a value, which sets its key to true."""
    declared = typer.Option(f"--{name.replace('_', '-')}", help=help_, rich_help_panel=panel)
    return Option(name, key, Annotated[bool, declared], False, lambda given: given or None)


def list_plugins(kind: str) -> Callable[[], list[str]]:
    """Return what lists the plugins of a kind, by the name of its registry."""

    def names() -> list[str]:
        from sparsity_search import registry

        found: list[str] = getattr(registry, kind).names()
        return found

    return names
