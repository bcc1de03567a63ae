"""Options that several commands share: each is declared once, with the key that it sets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.errors import ConfigError, show_value, told_of
from sparsity_search.runs.redact import STORAGE_VARIABLE
from sparsity_search.utils.files import check_writable

if TYPE_CHECKING:
    from sparsity_search.config.schema import RunConfig

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


OutFile = Annotated[Path, typer.Option("--out", help="The file to write.", callback=check_file)]
OutFolder = Annotated[
    Path, typer.Option("--out", help="The folder to write.", callback=check_folder)
]
RunDir = Annotated[Path, typer.Argument(help="A run directory.")]
RunStorage = Annotated[
    str | None,
    typer.Option(envvar=STORAGE_VARIABLE, help="URL of the run's storage, if it has one."),
]


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
        """
        from sparsity_search.config.load import load_config

        keys = {o.key: o.parse(self.values[o.name]) for o in self.options if o.key}
        overrides = self.values.get(SET.name) or []
        return load_config(self.values.get(CONFIG.name), {**keys, **(changes or {})}, overrides)


def takes(*options: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add shared options to a command, which gets them as its first argument, a `Given`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            shared = {option.name: values.pop(option.name) for option in options}
            command(Given(options, shared), **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        parameters += [option.parameter for option in options]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


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


def _split(option: str) -> Callable[[str | None], list[str] | None]:
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


def _option(
    name: str, key: str, help_: str, kind: type = str, metavar: str | None = None
) -> Option:
    return Option(name, key, Annotated[kind | None, typer.Option(help=help_, metavar=metavar)])


def _flag(name: str, key: str, help_: str) -> Option:
    declared = typer.Option(f"--{name.replace('_', '-')}", help=help_)
    return Option(name, key, Annotated[bool, declared], False, lambda given: given or None)


MODEL = Option(
    "model",
    "model.name",
    Annotated[
        str, typer.Argument(help="Hub id, local folder, .gguf file, or smollm2 (packaged).")
    ],
    REQUIRED,
)
EXCLUDE = _option(
    "exclude", "model.exclude", "Leave units with matching names alone.", metavar="REGEX"
)
BLOCKS = _option(
    "blocks",
    "model.blocks",
    "Name of the decoder blocks, if not found by themselves.",
    metavar="REGEX",
)
UNITS = _option(
    "units",
    "model.units",
    "What is removed: weights, width, heads, sublayers, blocks or experts.",
)
REVISION = _option("revision", "model.revision", "Revision of a hub model.")
DTYPE = _option("dtype", "model.dtype", "auto, bfloat16, float16 or float32.")
DEVICE = _option("device", "model.device", "auto, cpu, cuda, ...")
OFFLOAD = _flag("offload", "model.offload", "Hold one block at a time: for models beyond memory.")
TRUST_REMOTE_CODE = _flag(
    "trust_remote_code", "model.trust_remote_code", "Run code that comes with the model."
)
#: How the model is loaded, and which of its weights are units.
LOADING = (EXCLUDE, BLOCKS, UNITS, REVISION, DTYPE, DEVICE, OFFLOAD, TRUST_REMOTE_CODE)

SPARSITY = _option(
    "sparsity", "budget.sparsity", "Fraction of all prunable weights to remove.", float
)
SAVING = _option(
    "saving",
    "budget.saving",
    "Fraction to save, with --measure or for a space with options.",
    float,
)
MEASURE = _option(
    "measure",
    "measure.name",
    "What is saved: flops, latency (see `ls measures`), or a prices.json.",
)
BOUNDS = Option(
    "bounds",
    "budget.bounds",
    Annotated[
        list[str] | None,
        typer.Option("--bounds", metavar="ROLE=LOW:HIGH", help="Sparsity limits of a role."),
    ],
    parse=parse_bounds,
)
PLAN = _option("plan", "plan", "Steps of the search: name or YAML file; see `ls plans`.")
SPACE = _option("space", "space", "Name or YAML file; see `ls spaces`.")
PRUNER = _option(
    "pruner", "pruner.name", "Local pruner; see `ls pruners`. MASK+UPDATE composes two."
)
PATTERN = _option(
    "pattern",
    "pruner.pattern",
    "Which weights compete: layer, row, block, or N:M (keep N of M).",
)
SEARCHER = _option("searcher", "searcher.name", "See `ls searchers`.")
EVALUATOR = _option("evaluator", "evaluator.name", "See `ls evaluators`.")
SENSITIVITY = _option("sensitivity", "sensitivity.name", "See `ls sensitivities`.")
INITIAL = replace(
    _option("initial", "initial", "Allocators to start from, e.g. owl,uniform."),
    parse=_split("--initial"),
)
HINTS = replace(
    _option(
        "hints",
        "hints",
        "Advice: gradients, sensitivities (`ls sensitivities`), scores files.",
    ),
    parse=_split("--hints"),
)
FINALISE = _option(
    "finalise", "finalise.name", "Pruner to rebuild with at the end; that of the search."
)
CALIBRATION = _option(
    "calibration",
    "data.calibration",
    "Calibration text: file:PATH, hub:NAME[:CONFIG[:SPLIT]], sample, or self (by the model).",
)
SEARCH_TEXT = _option("search_text", "data.search_text", "Text to score candidates on.")
FINAL_TEXT = _option("final_text", "data.final_text", "Text of the final comparison.")
STAGES = _option("stages", "study.stages", "Coarse to fine: each stage has half the step.", int)
ROUNDS = _option("rounds", "study.rounds", "Rounds of each stage.", int)
MINUTES = _option("minutes", "study.minutes", "Time of the whole job; 10 by default.", float)
SEED = _option("seed", "study.seed", "Of all random draws.", int)
STORAGE = Option(
    "storage",
    "study.storage",
    Annotated[str | None, typer.Option(envvar=STORAGE_VARIABLE, help="URL of an Optuna storage.")],
)
WORKERS = _option(
    "workers", "study.workers", "Processes that measure, e.g. one for each GPU.", int
)

CONFIG = _option(
    "config", "", "YAML file with the configuration of a run, or see `ls presets`.", Path
)
SET = Option(
    "set_",
    "",
    Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one configuration key."),
    ],
)
#: The configuration itself: a file, and single keys.
CONFIGURATION = (CONFIG, SET)
