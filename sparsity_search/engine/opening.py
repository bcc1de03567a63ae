"""Opening of a search: checks of its configuration, and loading of its model and text."""

from __future__ import annotations

from pathlib import Path

from sparsity_search.config.schema import GRADIENTS, RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.hints import check_hints
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.parameters import build_parametric_space, check_parameters
from sparsity_search.engine.plugins import Plugins, build_budget, choose_units
from sparsity_search.engine.prices import check_measure, get_prices
from sparsity_search.engine.resident import ResidentModel
from sparsity_search.engine.session import open_session, request_search_text
from sparsity_search.errors import ConfigError
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.spaces.files import SpaceFile, load_space


def open_job(config: RunConfig, out: Path, monitor: Monitor) -> SearchJob:
    """Load model and text of a search, and check that it can run in ``out``; nothing is written.

    Raises:
        SparsitySearchError: The configuration is not legal.
    """
    directory, plugins, file = RunDirectory(out), Plugins.of(config), load_space(config.space)
    of_levels = file.of_levels
    check_parameters(config, file)
    budget = build_budget(config, of_levels, plugins.pruner)
    _check_stages(config, of_levels)
    directory.check_resumable(config)
    kind = choose_units(config, plugins.pruner)
    _check_kind(kind)
    check_measure(config, kind, of_levels.unpriced)
    _check_pool(config, plugins)
    requests = _request_text(config, plugins)
    seed, kept = config.study.seed, config.data.statistics
    session = open_session(config.model, requests, seed, monitor, units=kind, statistics=kept)
    prices = get_prices(config, session.subject, directory, monitor, of_levels.unpriced)
    space = of_levels.build(
        session.subject.layout, budget, config.budget.bounds, prices, session.hidden_size
    )
    resident = ResidentModel()
    parameters = build_parametric_space(config, file, session, space, resident.make_dense)
    job = SearchJob(config, plugins, session, space, directory, monitor, parameters, resident)
    config.ladder.check(*job.pool)  # a model with a short context has shorter sequences
    check_hints(config.hints, session)
    session.check_same_model(plugins.searcher.data_model(), "the searcher's data set")
    return job


def _check_kind(kind: str) -> None:
    """Check that profiles of a kind of units may differ, and be saved."""
    if kind == "experts":
        raise ConfigError(
            "all blocks keep equally many experts, as the model's configuration has one number, "
            "so there is nothing to search: give the share to remove to prune --sparsity"
        )


def _check_stages(config: RunConfig, space: SpaceFile) -> None:
    if config.study.stages > 1 and (space.pattern or space.options):
        raise ConfigError(
            f"the levels of the space {config.space!r} are patterns, with no step that could be "
            "halved: leave out --stages"
        )


def _check_pool(config: RunConfig, plugins: Plugins) -> None:
    """Check that the rungs fit the search text, as far as is known without the model.

    An evaluator's own data set must have separate rows for search and comparison.
    """
    data, own = config.data, plugins.evaluator.own_data()
    config.ladder.check(data.search_sequences, data.search_length)
    if own is not None:
        own.check(
            data.search_sequences + data.final_sequences,
            f"lower data.search_sequences ({data.search_sequences}) or "
            f"data.final_sequences ({data.final_sequences}), which number its rows too",
        )


def _request_text(config: RunConfig, plugins: Plugins) -> list[Request]:
    """Return the text needed: no search text if the evaluator has its own rows."""
    requests = request_search_text(config.data)
    if plugins.evaluator.own_data() is None or GRADIENTS in config.hints:
        return requests
    return [request for request in requests if request.purpose != "search"]
