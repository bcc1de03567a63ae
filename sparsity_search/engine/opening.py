"""Opening of a search: checks of its configuration, and loading of its model and text."""

from __future__ import annotations

from pathlib import Path

from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.hints import GRADIENTS, check_hints
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
    _check_own_data(config, plugins)
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
    _check_ladder(job)
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


def _check_own_data(config: RunConfig, plugins: Plugins) -> None:
    """Check that an evaluator's own data set has separate rows for search and comparison."""
    own = plugins.evaluator.own_data()
    if own is not None:
        needed = config.data.search_sequences + config.data.final_sequences
        own.check(
            needed,
            f"lower data.search_sequences ({config.data.search_sequences}) or "
            f"data.final_sequences ({config.data.final_sequences}), which number its rows too",
        )


def _request_text(config: RunConfig, plugins: Plugins) -> list[Request]:
    """Return the text needed: no search text if the evaluator has its own rows."""
    requests = request_search_text(config.data)
    if plugins.evaluator.own_data() is None or GRADIENTS in config.hints:
        return requests
    return [request for request in requests if request.purpose != "search"]


def _check_ladder(job: SearchJob) -> None:
    n_rows, length = job.pool
    available = n_rows * length
    ladders = job.config.ladder.generations
    for rung in (rung for ladder in ladders for rung in ladder.rungs):
        if rung.tokens % length or rung.tokens > available:
            raise ConfigError(
                f"a rung of {rung.tokens} tokens is not a whole number of sequences of {length}, "
                f"or more than the {available} of the search text: change ladder.rungs, "
                f"data.search_length or data.search_sequences"
            )
