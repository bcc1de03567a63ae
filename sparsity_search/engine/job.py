"""A search with its model, text, space and plugins, once its configuration is legal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import Plugins
from sparsity_search.engine.resident import ResidentModel
from sparsity_search.engine.session import Session
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.parametric import ParametricSpace
from sparsity_search.study.claims import Claims


@dataclass(frozen=True)
class SearchJob:
    """A search that is about to run.

    Attributes:
        config: The configuration.
        plugins: Plugins of the configuration.
        session: Model and text.
        space: The search space over the model.
        directory: The run directory.
        monitor: Monitor of the job.
        parameters: The space of an allocator's settings over `space`, if these are searched.
        resident: Holder of the supernet that is in the model.
        claims: Claims of this worker, if there are several workers.
    """

    config: RunConfig
    plugins: Plugins
    session: Session
    space: SearchSpace
    directory: RunDirectory
    monitor: Monitor
    parameters: ParametricSpace | None = None
    resident: ResidentModel = field(default_factory=ResidentModel)
    claims: Claims | None = None

    @property
    def search_text(self) -> Tensor:
        """Text that candidates are scored on, ``(n_sequences, length)``; empty if not needed."""
        none = torch.empty((0, self.config.data.search_length), dtype=torch.int64)
        return self.session.text.get("search", none)

    @property
    def pool(self) -> tuple[int, int]:
        """Number of rows to score candidates on, and tokens of a rung for each row."""
        return self.config.data.search_sequences, self.search_text.shape[1]
