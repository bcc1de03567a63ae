"""A profile in one shot, written as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_allocator
from sparsity_search.engine.session import open_session, request_calibration
from sparsity_search.interfaces.allocator import Allocation
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import PROFILE_JSON
from sparsity_search.registry import describe
from sparsity_search.spaces.files import bounds_of
from sparsity_search.utils.files import atomic_file


def allocate(
    config: RunConfig, name: str, out: Path, *, monitor: Monitor | None = None
) -> Allocation:
    """Allocate a profile and write it to ``out``; arrays go to a ``.safetensors`` file next to it.

    Args:
        config: Model, calibration text, budget and the allocator's hyper-parameters.
        name: The allocator.
        out: The file to write.
        monitor: Watches the job.

    Raises:
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    budget, plugin = Budget(config.budget.target), build_allocator(config, name)
    requests = [request_calibration(config.data)] if plugin.needs_text else []
    kind = config.model.units or plugin.units[0]
    seed, kept = config.study.seed, config.data.statistics
    session = open_session(config.model, requests, seed, monitor, units=kind, statistics=kept)
    layout = session.subject.layout
    bounds = bounds_of(layout, config.budget.bounds)
    budget.check(layout, bounds)
    with monitor.step(f"allocate {name}"):
        tokens = session.text.get("calibration", torch.empty(0, 0, dtype=torch.int64))
        found = plugin.detailed(session.subject, tokens, budget, bounds)
    facts = {
        "target": budget.target,
        "model": session.model_facts,
        "removes": session.subject.units,
        "allocator": describe(plugin),
        "text": session.text_facts,
        "notes": list(found.notes),
    }
    if found.arrays:
        with atomic_file(out.with_suffix(".safetensors")) as temporary:
            save_file(
                {name: np.ascontiguousarray(a) for name, a in found.arrays.items()}, temporary
            )
    PROFILE_JSON.write(out, {**found.profile.to_json(), **facts})
    return found
