"""The configuration of a run, in sections. Defaults of plugins live in the plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsity_search.data.special_tokens import SpecialTokens
from sparsity_search.errors import ConfigError
from sparsity_search.trials.ladder import Ladder


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginSection(BaseModel):
    """A plugin by name, with its hyper-parameters as further keys."""

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


class PrunerSection(PluginSection):
    """A local pruner; the name ``MASK+UPDATE`` composes two.

    The pruner UPDATE then updates the weights that the mask of the pruner MASK keeps. The pattern
    is the mask's, other settings are the update's, and ``mask.key`` sets the mask's.
    """

    @model_validator(mode="before")
    @classmethod
    def _compose(cls, value: Any) -> Any:
        if not (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
            return value
        mask, plus, update = value["name"].rpartition("+")
        if not plus:
            return value
        settings = {key: own for key, own in value.items() if key not in ("pattern", "mask")}
        pattern = {"pattern": value["pattern"]} if "pattern" in value else {}
        own = {"name": mask, **pattern, **value.get("mask", {})}
        return {**settings, "name": update, "mask": own}


class ModelSection(Section):
    """Which model, and how it is loaded.

    Attributes:
        name: Hub id, local directory, ``.gguf`` file, or ``smollm2``.
        revision: Of a hub model.
        dtype: ``bfloat16``, ``float16`` or ``float32``, in which the model computes and is saved;
            or ``auto``, see `load_model`.
        device: ``auto``, ``cpu``, ``cuda``, …
        trust_remote_code: Run code that comes with the model.
        offload: Keep the decoder blocks' weights in a file, and one block at a time on the
            device.
        exclude: Units whose name matches this regular expression are left alone.
        blocks: A regular expression that matches the name of the module list that holds the
            decoder blocks; by default they are found by their number.
        units: Kind of the units to remove: single ``weights``, or structures, see
            `models/units/`; by default the pruner's first kind.
        roles: Roles of linear layers by regular expression on the name within the block, e.g.
            ``mixer.in_proj: gate``; they precede the roles that names have.
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
    roles: dict[str, str] = {}


class DataSection(Section):
    """The text for each purpose. Parts of one source are disjoint.

    Attributes:
        calibration: Source for the pruner's statistics; by default the small text that comes
            with the package (``sample``).
        search_text: Source for the proxy evaluator, if it reads text; by default the
            calibration source.
        final_text: Source for the final comparison; by default the calibration source.
        special_tokens: Special tokens at the start of each sequence: those that the tokenizer
            puts before a document (``auto``), or ``none``, as in many published figures. Lengths
            include them. The model's own text (``self``) always starts with them.
        calibration_length: Tokens in a calibration sequence, at most.
        calibration_sequences: How many of them.
        search_length: Tokens in a search sequence.
        search_sequences: How many of them; at least as many as the top rung needs.
        final_length: Tokens in a sequence of the final comparison, at most.
        final_sequences: How many of them.
        refresh: What is pruned at once, before statistics are gathered anew: a ``layer`` with
            all that read the same tensor, a ``sublayer``, or a whole ``block``.
        statistics: Folder where runs share statistics of the dense model's inputs on the
            calibration text; by default nothing is kept.
    """

    calibration: str = "sample"
    search_text: str | None = None
    final_text: str | None = None
    special_tokens: SpecialTokens = "auto"
    calibration_length: int = Field(default=1024, ge=8)
    calibration_sequences: int = Field(default=16, ge=1)
    search_length: int = Field(default=512, ge=8)
    search_sequences: int = Field(default=8, ge=1)
    final_length: int = Field(default=1024, ge=8)
    final_sequences: int = Field(default=16, ge=1)
    refresh: Literal["layer", "sublayer", "block"] = "layer"
    statistics: str | None = None


class BudgetSection(Section):
    """How much is removed in all, and limits by role.

    Attributes:
        sparsity: Fraction of all prunable weights to remove.
        saving: In its place, for a space of options or a budget in another measure: fraction of
            the cost of all units to save.
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
            raise ConfigError("missing budget: give --sparsity, e.g. --sparsity 0.6")
        return self.sparsity


class SupernetSection(Section):
    """How the supernet is built and kept.

    Attributes:
        propagate: Outputs that later blocks see: those of the profile that the search starts from,
            the first of ``initial`` (``start``), of the uniform one (``centre``), of the
            ``dense`` model, or of all levels: their ``expectation`` or plain ``mean``.
        store: In ``memory``, or on ``disk`` in the run directory.
        cache: Folder where searches share supernets, in place of ``store``.
        prefix_mib: Memory for outputs that candidates with equal first blocks share, in MiB.
    """

    propagate: Literal["start", "centre", "dense", "expectation", "mean"] = "start"
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
        minutes: Time of the whole job over all sessions, from the command to the checkpoint; 10
            if neither limit is given.
        seed: Of all random draws.
        storage: URL of an Optuna storage; by default a journal file in the run directory.
        workers: Processes that measure candidates, each with a model of its own.
    """

    stages: int = Field(default=1, ge=1, le=100)
    rounds: int | None = Field(default=None, ge=0)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    storage: str | None = None
    workers: int = Field(default=1, ge=1, le=1024)

    @property
    def time_limit(self) -> float | None:
        """Minutes of the whole job; None if only the rounds are limited."""
        if self.minutes is None and self.rounds is None:
            return _DEFAULT_MINUTES
        return self.minutes


#: The plan of a search whose study is described by hand, as in presets.
STUDY = "study"
#: Name of the hint that is measured on the pruned model; all others use the dense one.
GRADIENTS = "gradients"


class RunConfig(Section):
    """Everything that one run is made from.

    Attributes:
        plan: What a search does step by step: the name of a plan, or a YAML file; see `plans/`.
        initial: Allocators that a search starts from.
        allocators: Their hyper-parameters by name, for `allocate` too.
        hints: Advice for searchers: sensitivities that are measured, files of scores, or
            ``gradients``, taken of the pruned model where the search starts.
        measure: Measure of the budget in place of weights: a plugin of `measures/`, or a file of
            prices.
        finalise: Pruner that the profiles are rebuilt with after a search; by default that of
            the search.
        recovery: How what pruning kept is trained, where a command is asked for that.
    """

    model: ModelSection
    plan: str | None = None
    budget: BudgetSection = BudgetSection()
    data: DataSection = DataSection()
    space: str = "per_linear"
    pruner: PrunerSection = PrunerSection(name="wanda")
    searcher: PluginSection = PluginSection(name="evolution")
    evaluator: PluginSection = PluginSection(name="kl_divergence")
    sensitivity: PluginSection = PluginSection(name="fisher")
    measure: PluginSection | None = None
    finalise: PrunerSection | None = None
    recovery: PluginSection = PluginSection(name="block")
    initial: list[str] = ["cfsp", "uniform"]
    hints: list[str] = []
    allocators: dict[str, dict[str, Any]] = {}
    ladder: Ladder = Ladder()
    supernet: SupernetSection = SupernetSection()
    study: StudySection = StudySection()

    def identity(self) -> dict[str, Any]:
        """Return all settings that measurements depend on, flat: without limits and storage."""
        flat = flatten(self.model_dump(mode="json"))
        limits = {"study.rounds", "study.minutes", "study.storage", "study.workers"}
        # places of weights and statistics; the fingerprint has the kind of the device
        limits |= {"supernet.store", "supernet.cache", "supernet.prefix_mib", "data.statistics"}
        limits |= {"model.offload", "model.device"}
        return {
            key: value
            for key, value in flat.items()
            if key not in limits and not key.startswith(("finalise", "recovery"))
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
