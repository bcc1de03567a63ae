"""The configuration of a run: one YAML, options of the command line on top, defaults below.

Defaults of plugins live in the plugins. Unknown keys are refused, and all faults are told at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsity_search.config.presets import preset_file, preset_names
from sparsity_search.errors import ConfigError, nearest
from sparsity_search.trials.ladder import Ladder, Rung

#: Sections that name a plugin.
_PLUGINS = ("pruner", "searcher", "evaluator", "sensitivity", "finalise", "measure")


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginSection(BaseModel):
    """A plugin by name, and its hyper-parameters beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The plugin's hyper-parameters, as given."""
        return dict(self.model_extra or {})

    @property
    def spec(self) -> dict[str, Any]:
        """Name and hyper-parameters, as `Factory.resolve` takes them."""
        return {"name": self.name, **self.parameters}


class ModelSection(Section):
    """Which model, and how it is loaded.

    Attributes:
        name: Hub id, local directory, ``.gguf`` file, or ``smollm2``.
        revision: Of a hub model.
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        device: ``auto``, ``cpu``, ``cuda``, …
        trust_remote_code: Run code that comes with the model.
        offload: Keep the decoder blocks' weights in a file, and one block at a time on the
            device.
        exclude: Units whose name matches this regular expression are left alone.
        blocks: A regular expression that matches the name of the module list that holds the
            decoder blocks; by default they are found by their number.
        units: What is removed: single ``weights``, or structures, see `models/units/`; by
            default what the pruner usually removes.
    """

    name: str
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    offload: bool = False
    exclude: str | None = None
    blocks: str | None = None
    units: str | None = None


class DataSection(Section):
    """Which text is used for what. Parts of one source are disjoint.

    Attributes:
        calibration: Source for the pruner's statistics.
        search_text: Source for the proxy evaluator, if it reads text; by default the
            calibration source.
        final_text: Source for the final comparison; by default the calibration source.
        calibration_length: Tokens in a calibration sequence, at most.
        calibration_sequences: How many of them.
        search_length: Tokens in a search sequence.
        search_sequences: How many of them; at least what the top rung needs.
        final_length: Tokens in a sequence of the final comparison, at most.
        final_sequences: How many of them.
        statistics: Folder where runs share what is gathered of the dense model's inputs on the
            calibration text; by default nothing is kept.
    """

    calibration: str = "self"
    search_text: str | None = None
    final_text: str | None = None
    calibration_length: int = Field(default=1024, ge=8)
    calibration_sequences: int = Field(default=16, ge=1)
    search_length: int = Field(default=512, ge=8)
    search_sequences: int = Field(default=8, ge=1)
    final_length: int = Field(default=1024, ge=8)
    final_sequences: int = Field(default=16, ge=1)
    statistics: str | None = None


class BudgetSection(Section):
    """How much is removed in all, and limits by role.

    Attributes:
        sparsity: Fraction of all prunable weights to remove.
        saving: In its place, for a space of options or a budget in another measure: fraction of
            what all units cost to save.
        bounds: Limits of sparsity by role.
    """

    sparsity: float | None = None
    saving: float | None = Field(default=None, gt=0, lt=1)
    bounds: dict[str, tuple[float, float]] = {}

    @property
    def target(self) -> float:
        """The global sparsity.

        Raises:
            ConfigError: None was given.
        """
        if self.saving is not None:
            raise ConfigError(
                "--saving (budget.saving) is only for a search of a space with options, or with "
                "--measure: leave it out and give --sparsity"
            )
        if self.sparsity is None:
            raise ConfigError("how much shall be removed? give --sparsity, e.g. --sparsity 0.6")
        return self.sparsity


class RungSection(Section):
    """One rung of the ladder."""

    tokens: int
    survivors: int


class LadderSection(Section):
    """How many candidates a round has, and on how many tokens they are measured; see `Ladder`."""

    candidates: int = 12
    rungs: list[RungSection] = [
        RungSection(tokens=512, survivors=2),
        RungSection(tokens=2048, survivors=1),
    ]
    fresh: bool = False
    confidence: float | None = None

    def build(self) -> Ladder:
        """Return the ladder."""
        rungs = tuple(Rung(rung.tokens, rung.survivors) for rung in self.rungs)
        return Ladder(
            candidates=self.candidates, rungs=rungs, fresh=self.fresh, confidence=self.confidence
        )


class SupernetSection(Section):
    """How the supernet is built and kept.

    Attributes:
        propagate: What later blocks see: outputs of the profile that the search starts from, the
            first of ``initial`` (``start``), or of the uniform one (``centre``), ``dense`` ones,
            or those of all levels mixed: their ``expectation`` or plain ``mean``.
        refresh: Statistics are gathered for each ``block`` at once, or for each ``sublayer``, so
            that the feed-forward sees the pruned attention.
        store: In ``memory``, or on ``disk`` in the run directory.
        cache: Folder where searches share supernets, in place of ``store``.
        prefix_mib: Memory for what candidates that begin alike have in common, in MiB.
    """

    propagate: Literal["start", "centre", "dense", "expectation", "mean"] = "start"
    refresh: Literal["block", "sublayer"] = "block"
    store: Literal["memory", "disk"] = "memory"
    cache: str | None = None
    prefix_mib: int = Field(default=1024, ge=0)


#: Minutes of a search for which neither rounds nor minutes are given.
_DEFAULT_MINUTES = 10.0


class StudySection(Section):
    """When the search ends, its seed, and where its measurements are kept.

    Attributes:
        stages: How often the space is searched: each time after the first around the profile
            found before, with half the step and a supernet of its own (coarse to fine).
        rounds: Rounds after the initial one, in each stage.
        minutes: Search time over all sessions and stages; 10 if neither limit is given.
        seed: Of all random draws.
        storage: URL of an Optuna storage; by default a journal file in the run directory.
        workers: Processes that measure candidates, each with a model of its own.
    """

    stages: int = Field(default=1, ge=1)
    rounds: int | None = Field(default=None, ge=0)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = 0
    storage: str | None = None
    workers: int = Field(default=1, ge=1)

    @property
    def time_limit(self) -> float | None:
        """Minutes over all sessions and stages; None if only the rounds are limited."""
        if self.minutes is None and self.rounds is None:
            return _DEFAULT_MINUTES
        return self.minutes


class RunConfig(Section):
    """Everything that one run is made from.

    Attributes:
        initial: Allocators that a search starts from.
        allocators: Their hyper-parameters by name, for `allocate` too.
        hints: Advice for searchers: sensitivities that are measured, files of scores, or
            ``gradients``, taken of the pruned model where the search starts.
        measure: What the budget is in, in place of weights: a plugin of `measures/`, or a file of
            prices.
        finalise: Pruner that the profiles are rebuilt with after a search; by default that of
            the search.
    """

    model: ModelSection
    budget: BudgetSection = BudgetSection()
    data: DataSection = DataSection()
    space: str = "per_linear"
    pruner: PluginSection = PluginSection(name="wanda")
    searcher: PluginSection = PluginSection(name="evolution")
    evaluator: PluginSection = PluginSection(name="kl_divergence")
    sensitivity: PluginSection = PluginSection(name="fisher")
    measure: PluginSection | None = None
    finalise: PluginSection | None = None
    initial: list[str] = ["cfsp", "uniform"]
    hints: list[str] = []
    allocators: dict[str, dict[str, Any]] = {}
    ladder: LadderSection = LadderSection()
    supernet: SupernetSection = SupernetSection()
    study: StudySection = StudySection()

    def identity(self) -> dict[str, Any]:
        """Return what a search depends on, flat: all but limits, storage and what follows it."""
        flat = flatten(self.model_dump(mode="json"))
        limits = {"study.rounds", "study.minutes", "study.storage", "study.workers"}
        # where weights and statistics are, not which; kinds of devices are told apart elsewhere
        limits |= {"supernet.store", "supernet.cache", "supernet.prefix_mib", "data.statistics"}
        limits |= {"model.offload", "model.device"}
        return {
            key: value
            for key, value in flat.items()
            if key not in limits and not key.startswith("finalise")
        }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted keys.

    >>> flatten({"study": {"seed": 0}, "space": "per_block"})
    {'study.seed': 0, 'space': 'per_block'}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


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
    _compose(nested.get("pruner"))
    _compose(nested.get("finalise"))
    try:
        config = RunConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError("; ".join(_fault(e) for e in error.errors())) from error
    config.ladder.build()
    return config


def _compose(pruner: Any) -> None:
    """Turn ``MASK+UPDATE`` into the pruner that updates the weights of the other's mask.

    The pattern is the mask's, and other settings the update's; ``mask.key`` sets the mask's.
    """
    if isinstance(pruner, dict) and isinstance(pruner.get("name"), str):
        mask, plus, update = pruner["name"].rpartition("+")
        if plus:
            settings = {"pattern": pruner.pop("pattern")} if "pattern" in pruner else {}
            settings |= pruner.get("mask", {})
            pruner |= {"name": update, "mask": {"name": mask, **settings}}


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds, or a preset if the name is one's."""
    if str(path) in preset_names():
        path = preset_file(str(path))
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


def _fault(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {nearest(location[-1], _known_keys(location[:-1]))}"
    return f"{key}: {error['msg']}, not {error['input']!r}"


def _known_keys(path: Sequence[str]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        if not part.isdigit():  # else an item of the list whose item type `section` is already
            annotation = section.model_fields[part].annotation
            section = next(iter(get_args(annotation)), annotation)
    return list(section.model_fields)
