"""A search that is killed and started again, beside an uninterrupted one."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Commands  # the file beside this one

from sparsity_search.utils.files import write_json, write_text
from sparsity_search.utils.random import create_generator

#: All kinds of steps, each bounded by counts.
PLAN = """
about: bounded by counts alone
pruner: wanda
confidence: 0.8
steps:
  - starts: [cfsp]
  - allocate: gauss_newton
    settings: {start: best, steps: 1}
    repeat: 2
  - search:
      hints: [gradients]
      ladder: {candidates: 4, fresh: true}
      study: {rounds: 3}
  - rebuild: sparsegpt
"""


@dataclass(frozen=True)
class Trials:
    """Searches of one command, each killed once at a random moment.

    Attributes:
        commands: Runs them.
        folder: Where they work; what is finished is kept in ``N.json`` for each trial.
        model: The model.
        options: Further options of the command.
    """

    commands: Commands
    folder: Path
    model: str
    options: Sequence[object]

    def run(self, n: int) -> list[dict[str, Any]]:
        """Return the outcome of each trial, made now if need be."""
        begun, ended = self._run_whole()
        for trial in range(n):
            file = self.folder / f"{trial}.json"
            if not file.exists():
                write_json(file, self._run_trial(trial, begun, ended))
            print(f"kill {trial}: {json.loads(file.read_text())}", flush=True)
        return read_trials(self.folder)

    def _arguments(self, run: Path) -> list[object]:
        plan = self.folder / "plan.yaml"
        return ["search", self.model, "--plan", plan, *self.options, "--out", run]

    def _run_whole(self) -> tuple[float, float]:
        """Return when the uninterrupted search began its work and ended; it runs if need be.

        Both are seconds since the command started.
        """
        file, run = self.folder / "whole.json", self.folder / "whole"
        if not file.exists():
            shutil.rmtree(run, ignore_errors=True)  # of a session that was interrupted itself
            write_text(self.folder / "plan.yaml", PLAN)
            started = time.monotonic()
            self.commands.run(self._arguments(run), self.folder / "log.txt")
            write_json(file, {"seconds": time.monotonic() - started})
        ended: float = json.loads(file.read_text())["seconds"]
        return ended - json.loads((run / "steps.json").read_text())["seconds"], ended

    def _run_trial(self, trial: int, begun: float, ended: float) -> dict[str, Any]:
        run, log = self.folder / "cut", self.folder / "log.txt"
        rng, moment, taken = create_generator(0, "kill", trial), ended, ended
        while taken <= moment:  # it ended before: this run was faster than the first one
            moment = float(rng.uniform(min(begun, taken / 2), taken))
            shutil.rmtree(run, ignore_errors=True)
            taken = self._kill(self._arguments(run), log, moment)
        steps = _count_steps(run)
        self.commands.run(self._arguments(run), log)
        whole = self.folder / "whole"
        names = [file.relative_to(whole) for file in (whole / "checkpoint").glob("*.safetensors")]
        outcome = {
            "kill": trial,
            "second": round(moment, 1),
            "of": round(ended, 1),
            "steps": steps,
            "same_profile": _equal(whole, run, Path("profile.json")),
            "same_weights": all(_equal(whole, run, name) for name in names),
        }
        shutil.rmtree(run)
        return outcome

    def _kill(self, arguments: Sequence[object], log: Path, moment: float) -> float:
        """Kill a search; return the seconds it took if it ended before, else infinity."""
        started, process = time.monotonic(), self.commands.start(arguments, log)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            return math.inf
        finally:
            process.kill()
            process.wait()
        return time.monotonic() - started


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Return the outcomes that are in a folder."""
    files = sorted(folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
    return [json.loads(file.read_text()) for file in files]


def _count_steps(run: Path) -> int:
    file = run / "steps.json"
    return len(json.loads(file.read_text())["steps"]) if file.exists() else 0


def _equal(one: Path, other: Path, name: Path) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()
