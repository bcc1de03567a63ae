"""Weights & Biases: a run in a project, online or offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.interfaces.tracker import Tracker, Tracking
from sparsity_search.utils.extras import require


@dataclass(frozen=True, kw_only=True)
class WandbTracker(Tracker):
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run directory.

    Attributes:
        project: Name of the project that holds the run.
    """

    project: str = "sparsity-search"

    def check(self) -> None:
        """Check that the package is there."""
        require("--track wandb", "wandb", "wandb")

    def open(self, name: str, settings: Mapping[str, Any], folder: Path) -> Tracking:
        """Begin a run; settings are its configuration."""
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            name=name,
            config=dict(settings),
            dir=str(folder),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )
        return _Run(run)


class _Run(Tracking):
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def attach(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, *, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
