"""The prices of a search whose budget is not in weights, measured once and then kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsity_search.config.schema import PluginSection, RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.errors import ConfigError, told_of
from sparsity_search.interfaces.measure import Measure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import MEASURES, Factory
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.spaces.prices import PRICES_JSON, Prices


def check_measure(config: RunConfig, kind: str, patterns: Sequence[str] = ()) -> None:
    """Check, before any work, that units of a kind can be priced, and patterns of them.

    Raises:
        UnknownNameError: There is no such measure.
        ConfigError: The measure refuses its settings, the units or the patterns, or there is no
            such file.
    """
    if config.measure is None:
        return
    if _is_file(config.measure):
        PRICES_JSON.read(Path(config.measure.name))
    else:
        _build_measure(config.measure).check(kind, patterns)


def get_prices(
    config: RunConfig,
    subject: PrunableModel,
    run: RunDirectory,
    monitor: Monitor,
    patterns: Sequence[str] = (),
) -> Prices | None:
    """Return the prices that a search measures or reads; None if it names no measure.

    A resumed run keeps its first prices.

    Args:
        config: Configuration of the search.
        subject: The dense model.
        run: Directory of the search.
        monitor: Monitor of the job.
        patterns: N:M patterns to price in addition.

    Raises:
        ConfigError: The units cannot be priced, or the file has no prices of them.
        ModelError: The measure needs a smaller model, which the architecture does not allow.
    """
    if config.measure is None:
        return None
    if run.begun:
        return run.read_prices(subject.layout)
    if _is_file(config.measure):
        path = Path(config.measure.name)
        stored = PRICES_JSON.read(path)
        with told_of(path):
            return Prices.from_json(subject.layout, stored)
    with monitor.step(f"measure {config.measure.name}"):
        return _build_measure(config.measure).price(subject, config.measure.name, patterns)


def _is_file(section: PluginSection) -> bool:
    if section.name.endswith(".json") and section.parameters:
        raise ConfigError(f"the prices in {section.name} have no settings")
    return section.name.endswith(".json")


def _build_measure(section: PluginSection) -> Measure:
    found: Measure = Factory().resolve(MEASURES, section.spec)
    return found
