"""MLflow: a run in an experiment, on a server or in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.interfaces.tracker import Tracker, Tracking
from sparsity_search.utils.extras import require

#: Longest value of a parameter that every store of MLflow takes.
_LONGEST = 500


@dataclass(frozen=True, kw_only=True)
class MlflowTracker(Tracker):
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` says.

    Attributes:
        experiment: Name of the experiment that holds the run.
    """

    experiment: str = "sparsity-search"

    def check(self) -> None:
        """Check that the package is there."""
        require("--track mlflow", "mlflow", "mlflow")

    def open(self, name: str, settings: Mapping[str, Any], folder: Path) -> Tracking:
        """Begin a run; settings are its parameters."""
        del folder
        from mlflow import MlflowClient

        client = MlflowClient()
        found = client.get_experiment_by_name(self.experiment)
        experiment = (
            client.create_experiment(self.experiment) if found is None else found.experiment_id
        )
        run = client.create_run(experiment, run_name=name).info.run_id
        for key, value in settings.items():
            client.log_param(run, key, str(value)[:_LONGEST])
        return _Run(client, run)


class _Run(Tracking):
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def attach(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    def close(self, *, failed: bool = False) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
