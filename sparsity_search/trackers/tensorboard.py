"""TensorBoard: event files in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.interfaces.tracker import Tracker, Tracking
from sparsity_search.utils.extras import require


@dataclass(frozen=True, kw_only=True)
class TensorboardTracker(Tracker):
    """Event files in ``tensorboard/`` of the run: ``tensorboard --logdir RUN``."""

    def check(self) -> None:
        """Check that the package is there."""
        require("--track tensorboard", "tensorboard", "tensorboard")

    def open(self, name: str, settings: Mapping[str, Any], folder: Path) -> Tracking:
        """Begin an event file; settings are its text."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))
        text = json.dumps({"name": name, **settings}, indent=2, default=str)
        writer.add_text("settings", f"```\n{text}\n```")
        return _EventFile(writer)


class _EventFile(Tracking):
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def attach(self, path: Path) -> None:
        """Name the file: event files hold none."""
        self._writer.add_text("files", str(path))

    def close(self, *, failed: bool = False) -> None:
        del failed
        self._writer.close()
