"""The losses of every unit at every level, measured once and written as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_factory, build_pruner, choose_units
from sparsity_search.engine.session import open_session, request_calibration
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.profiles.scores import Scores
from sparsity_search.registry import ALLOCATORS, SENSITIVITIES
from sparsity_search.runs.scores import save_scores


def sensitivity(config: RunConfig, out: Path, *, monitor: Monitor | None = None) -> Scores:
    """Measure the losses of all units and write them to ``out``.

    The levels are those of the allocator ``knapsack`` (`allocators.knapsack.levels`).

    Args:
        config: Model, calibration text, pruner and sensitivity.
        out: The JSON file to write; pairs go into a ``.safetensors`` file next to it.
        monitor: Watches the job.

    Raises:
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    if out.suffix != ".json" or out.is_dir():
        raise ConfigError(f"scores are a JSON file: name --out FILE.json, not {out}")
    build, pruner = build_factory(config), build_pruner(config)
    plugin: Sensitivity = build.resolve(SENSITIVITIES, config.sensitivity.spec)
    kind = choose_units(config, pruner)
    plugin.check_units(kind)
    if pruner.merges:
        raise ConfigError("this pruner merges removed units into kept ones: use drop instead")
    measured = {"sensitivity": plugin, "pruner": pruner}
    measurer: ScoredAllocator = build.create(ALLOCATORS, "knapsack", measured)
    requests = [request_calibration(config.data)]
    seed, kept = config.study.seed, config.data.statistics
    session = open_session(config.model, requests, seed, monitor, units=kind, statistics=kept)
    with monitor.step(f"measure {config.sensitivity.name}"):
        found = measurer.measure(session.subject, session.text["calibration"])
    facts = {
        "model": session.model_facts,
        "removes": session.subject.units,
        "pruner": config.pruner.model_dump(mode="json"),
        "sensitivity": config.sensitivity.model_dump(mode="json"),
        "seed": config.study.seed,
        "text": session.text_facts,
    }
    scores = replace(found, facts=facts)
    save_scores(out, scores)
    return scores
