"""One search with all it works on, once everything given has been found legal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsity_search.config import RunConfig
from sparsity_search.space import SearchSpace
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.plugins import Plugins
from sparsity_search.workflow.session import Session


@dataclass(frozen=True)
class Job:
    """A search about to run.

    Attributes:
        config: The configuration.
        plugins: Its plugins.
        session: Model and text.
        space: The search space over the model.
        out: The run directory.
        monitor: Watches the job.
    """

    config: RunConfig
    plugins: Plugins
    session: Session
    space: SearchSpace
    out: Path
    monitor: Monitor
