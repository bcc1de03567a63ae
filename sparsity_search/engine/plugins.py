"""The plugins of a run, constructed from its configuration before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sparsity_search.config.schema import STUDY, PrunerSection, RunConfig
from sparsity_search.engine.given_profile import GivenProfile
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.interfaces.evaluator import Evaluator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.patterns import groups_of, with_pattern
from sparsity_search.registry import ALLOCATORS, EVALUATORS, PRUNERS, SEARCHERS, Factory
from sparsity_search.runs.stage_spaces import SEARCHED
from sparsity_search.spaces.files import SpaceFile, load_space


@dataclass(frozen=True)
class Plugins:
    """The plugins that a configuration names.

    Attributes:
        pruner: Pruner that makes the supernet.
        final: Pruner that rebuilds profiles after the search; by default the same one.
        searcher: Searcher that proposes candidates.
        evaluator: Evaluator that scores candidates.
        initial: Allocators of the initial profiles, by label.
    """

    pruner: Pruner
    final: Pruner
    searcher: Searcher
    evaluator: Evaluator
    initial: dict[str, Allocator]

    @classmethod
    def of(cls, config: RunConfig) -> Plugins:
        """Return the plugins of a configuration.

        Raises:
            UnknownNameError: There is no such plugin.
            ConfigError: A plugin refuses its hyper-parameters.
        """
        build = build_factory(config)
        pruner = build_pruner(config)
        return cls(
            pruner=pruner,
            final=build_final(config, pruner, config.finalise),
            searcher=build.resolve(SEARCHERS, config.searcher.spec),
            evaluator=build.resolve(EVALUATORS, config.evaluator.spec),
            initial={
                label: build_allocator(config, name)
                for label, name in label_starts(config.initial).items()
            },
        )


def label_starts(names: Sequence[str]) -> dict[str, str]:
    """Return the starts of a search by label, each once.

    The label of an allocator is its name, that of a file comes from its path. A label that is
    taken gets a number: by another start, by the dense or the searched profile, or, for a file,
    by any allocator.

    >>> label_starts(["owl", "a/b.json", "c/a/b.json", "uniform.json"])
    {'owl': 'owl', 'a-b': 'a/b.json', 'a-b-2': 'c/a/b.json', 'uniform-2': 'uniform.json'}
    """
    allocators = {*ALLOCATORS.names(), *names}
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        taken = {"dense", SEARCHED, *labels}
        if _is_file(name):
            path = Path(name)
            label = "-".join(filter(None, (path.parent.name, path.stem)))
            labels[_number(label, taken | allocators)] = name
        else:
            labels[_number(name, taken)] = name
    return labels


def _number(label: str, taken: Collection[str]) -> str:
    """Return a label, with the least number from 2 that makes it a new one if it is taken."""
    numbered = (f"{label}-{number}" for number in count(2))
    return label if label not in taken else next(new for new in numbered if new not in taken)


def _is_file(name: str) -> bool:
    return name.endswith(".json")


def build_final(config: RunConfig, pruner: Pruner, section: PrunerSection | None) -> Pruner:
    """Return the pruner that rebuilds profiles, with the pattern of the search's pruner.

    Args:
        config: The configuration.
        pruner: The search's pruner.
        section: The section of the pruner that rebuilds; None for that of the search.

    Raises:
        UnknownNameError: There is no such pruner.
        ConfigError: It refuses its hyper-parameters or the pattern, or cannot remove the units.
    """
    if section is None:
        return pruner
    final: Pruner = build_factory(config).resolve(PRUNERS, section.spec)
    if choose_units(config, pruner) not in final.units:
        kinds = " or ".join(final.units)
        raise ConfigError(
            f"--finalise {section.name} removes {kinds}, not {choose_units(config, pruner)}"
        )
    groups = groups_of(pruner)
    if groups is None or "pattern" in section.parameters:
        return final
    return with_pattern(final, str(groups))


def build_budget(config: RunConfig, space: SpaceFile, pruner: Pruner) -> Budget:
    """Return the budget of a search: a sparsity, or a saving if states have prices.

    Prices come from a measure or from the options of a space. A saving is a fraction of the
    total cost of all dense units.

    Raises:
        ConfigError: There is not exactly one of sparsity and saving, or it is the wrong one; the
            pruner does not support the space's options; or these have no prices, or two.
    """
    options = space.options or {}
    if config.measure is None and not options:
        return Budget(config.budget.target)
    _check_prices(config, space)
    saving = config.budget.saving
    if saving is None or config.budget.sparsity is not None:
        measured = config.measure and f"a budget in {config.measure.name}"
        budget = measured or f"the space {config.space!r} has options, and its budget"
        raise ConfigError(
            f"{budget} is a fraction to save: give --saving, e.g. --saving 0.25, and no --sparsity"
        )
    for pattern in options:
        with_pattern(pruner, pattern)
    return Budget(saving)


def _check_prices(config: RunConfig, space: SpaceFile) -> None:
    """Check that prices come from a measure or from the space's options, not from both."""
    if config.measure is None and space.unpriced:
        raise ConfigError(
            f"the space {config.space!r} has no savings for its options: name a measure with "
            "--measure, or write a fraction behind each"
        )
    if config.measure is not None and space.pattern:
        raise ConfigError(
            f"the space {config.space!r} has patterns: leave out --measure, or list them under "
            "options"
        )
    if config.measure is not None and space.options and not space.unpriced:
        raise ConfigError(
            f"the space {config.space!r} has patterns: leave out --measure, or list them without "
            "what they save"
        )


def find_kind(config: RunConfig) -> str:
    """Return what a search removes, which is the name of its plan.

    Raises:
        UnknownNameError: There is no such pruner or space.
        ConfigError: The pruner refuses its hyper-parameters, or the space is not legal.
    """
    file, pruner = load_space(config.space), build_pruner(config)
    if file.of_levels is not file:  # settings of an allocator
        return STUDY
    if config.budget.saving is not None or file.of_levels.options:
        return "savings"
    if (config.model.units or pruner.units[0]) != "weights":
        return "structures"
    return "patterns" if file.of_levels.pattern or groups_of(pruner) else "weights"


def choose_units(config: RunConfig, pruner: Pruner) -> str:
    """Return the kind of units that a pruner removes.

    Raises:
        ConfigError: The configuration names a kind that the pruner cannot remove.
    """
    wanted = config.model.units or pruner.units[0]
    if wanted not in pruner.units:
        kinds = " or ".join(pruner.units)
        raise ConfigError(f"the pruner {config.pruner.name!r} removes {kinds}, not {wanted}")
    return wanted


def build_factory(config: RunConfig) -> Factory:
    """Return the factory of a run's plugins.

    Allocators get the run's pruner and seed and the settings in `RunConfig.allocators`, also if
    one allocator is a setting of another.

    Raises:
        UnknownNameError: There is no such pruner.
        ConfigError: It refuses its hyper-parameters.
    """
    shared = {"pruner": build_pruner(config), "seed": config.study.seed}
    return Factory(sections={"allocator": config.allocators}, shared={"allocator": shared})


def build_pruner(config: RunConfig) -> Pruner:
    """Return the pruner of a run.

    Raises:
        UnknownNameError: There is no such pruner.
        ConfigError: It refuses its hyper-parameters.
    """
    found: Pruner = Factory().resolve(PRUNERS, config.pruner.spec)
    return found


def build_allocator(
    config: RunConfig, name: str, more: Mapping[str, Any] | None = None
) -> Allocator:
    """Return an allocator with its hyper-parameters from the configuration.

    A name that ends in ``.json`` is a file with a profile, which is transferred to the budget.

    Fields ``pruner`` and ``seed`` default to the run's. The hyper-parameters in ``more`` override
    all others.

    Raises:
        UnknownNameError: There is no such allocator.
        ConfigError: It refuses its hyper-parameters.
    """
    if _is_file(name):
        return GivenProfile.read(Path(name))
    found: Allocator = build_factory(config).create(ALLOCATORS, name, more or {})
    return found
