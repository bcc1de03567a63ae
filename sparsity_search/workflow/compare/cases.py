"""The cases of a comparison: allocators, pruners, sparsities and seeds, all combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsity_search.config.schema import PluginSection, RunConfig
from sparsity_search.engine.plugins import build_allocator, choose_units
from sparsity_search.errors import ConfigError, show_value, told_of
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.profiles.budget import Budget
from sparsity_search.registry import PRUNERS, Factory, describe
from sparsity_search.utils.files import make_slug
from sparsity_search.utils.reading import parse_yaml

#: What all others are compared with; it is always there, and first.
REFERENCE = "uniform"

_MOST_SEEDS = 1000
_OPEN, _CLOSE = "[({", "])}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a comparison.

    Attributes:
        allocator: Its label: a name, or a name with settings.
        pruner: Its label.
        budget: How much goes.
        seed: Of all random draws; each has its own calibration text.
        allocating: The allocator.
        pruning: The pruner.
        own_profile: Whether the profile depends on the pruner.
    """

    allocator: str
    pruner: str
    budget: Budget
    seed: int
    allocating: Allocator
    pruning: Pruner
    own_profile: bool

    @property
    def key(self) -> str:
        """Names the row and its file: ``wanda-70-owl-seed0``."""
        return f"{make_slug(self.pruner)}-{self._profile}"

    @property
    def profile_key(self) -> str:
        """Names the file of the profile, which pruners share where they can."""
        return self.key if self.own_profile else self._profile

    @property
    def fingerprint(self) -> dict[str, str]:
        """Allocator and pruner, which a stored row must have to be used again."""
        return {"allocator": describe(self.allocating), "pruner": describe(self.pruning)}

    @property
    def _profile(self) -> str:
        return f"{100 * self.budget.target:.10g}-{make_slug(self.allocator)}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a comparison.

    Attributes:
        config: Model, text, bounds, first seed, and settings of allocators by name.
        allocators: Labels: ``owl``, or ``owl[m=7;spread=0.2]``; ``uniform`` is added.
        pruners: By label.
        sparsities: Global sparsities.
        seeds: How many.
    """

    config: RunConfig
    allocators: tuple[str, ...]
    pruners: Mapping[str, PluginSection]
    sparsities: tuple[float, ...]
    seeds: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise ConfigError(f"--seeds must be 1 to {_MOST_SEEDS}, not {self.seeds}")
        if not self.pruners or not self.sparsities:
            raise ConfigError("a comparison needs a pruner and a sparsity at least")

    @property
    def seed_range(self) -> range:
        """The seeds, from that of the configuration on."""
        return range(self.config.study.seed, self.config.study.seed + self.seeds)

    def choose_kind(self) -> str:
        """Return the kind of units that all pruners can remove.

        Raises:
            ConfigError: There is none, or the configuration names another.
        """
        pruners = {label: self._pruner(section) for label, section in self.pruners.items()}
        kinds = {choose_units(self._config(label), pruner) for label, pruner in pruners.items()}
        if len(kinds) > 1:
            raise ConfigError(
                f"these pruners remove {' and '.join(sorted(kinds))}: choose one with --units"
            )
        return kinds.pop()

    def list_cases(self) -> list[Case]:
        """Return all rows, one seed after the other, uniform first in each group.

        Raises:
            UnknownNameError: There is no such allocator or pruner.
            ConfigError: A plugin refuses its settings, or a sparsity is not in (0, 1).
        """
        found = [
            self._case(label, pruner, target, seed)
            for seed in self.seed_range
            for target in dict.fromkeys(self.sparsities)
            for pruner in self.pruners
            for label in dict.fromkeys((REFERENCE, *self.allocators))
        ]
        if len({case.key for case in found}) < len(found):
            raise ConfigError("two of the allocators or pruners have the same file name")
        return found

    def _case(self, label: str, pruner: str, target: float, seed: int) -> Case:
        name, settings = parse_label(label)
        config = self._config(pruner, seed)
        settings = {**config.allocators.get(name, {}), **settings}
        config = config.model_copy(update={"allocators": {**config.allocators, name: settings}})
        found = build_allocator(config, name)
        fields = {field.name for field in dataclasses.fields(found)}  # type: ignore[arg-type]
        return Case(
            allocator=label,
            pruner=pruner,
            budget=Budget(target),
            seed=seed,
            allocating=found,
            pruning=self._pruner(self.pruners[pruner]),
            own_profile="pruner" in fields - settings.keys(),
        )

    def _config(self, pruner: str, seed: int = 0) -> RunConfig:
        study = self.config.study.model_copy(update={"seed": seed})
        return self.config.model_copy(update={"pruner": self.pruners[pruner], "study": study})

    @staticmethod
    def _pruner(section: PluginSection) -> Pruner:
        found: Pruner = Factory().resolve(PRUNERS, section.spec)
        return found


def parse_label(label: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of ``NAME[KEY=VALUE;KEY=VALUE]``; values are YAML.

    Raises:
        ConfigError: The text is not of that form.

    >>> parse_label("owl[m=7;per=linear]")
    ('owl', {'m': 7, 'per': 'linear'})
    """
    name, opened, rest = label.strip().partition("[")
    if not opened:
        return name, {}
    settings = {}
    for part in split_list(rest.removesuffix("]"), ";"):
        key, equals, text = part.partition("=")
        if not (rest.endswith("]") and equals and key.strip()):
            raise ConfigError(
                f"an allocator with settings is NAME[KEY=VALUE;…], not {show_value(label)}"
            )
        with told_of(f"{name}: {key.strip()}"):
            settings[key.strip()] = parse_yaml(text)
    return name, settings


def split_list(text: str, separator: str = ",") -> list[str]:
    """Return the parts of a list, which may hold the separator within brackets.

    >>> split_list("owl, owl[m=7;spread=0.2],x[levels=[0.1,0.2]]")
    ['owl', 'owl[m=7;spread=0.2]', 'x[levels=[0.1,0.2]]']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
