"""Perplexity and time of every local pruner on SmolLM2-135M: the tables of docs/pruners.md.

Every case is kept in ``OUT/CASE.json`` once it is measured, so the script goes on where it was
stopped; ``--case`` takes shell patterns. Time is that of all threads of this process (CPU
seconds), so that other work on the machine does not show in it:

    python benchmarks/pruners.py --calibration wikipedia_calibration.jsonl \
        --test wikitext2_valid.txt --out runs/pruners --table benchmarks/results/pruners.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from tables import slug, write_table  # the file beside this one

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session, request_calibration
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import ALLOCATORS, EVALUATORS, PRUNERS
from sparsity_search.utils.files import write_json

WEIGHTS: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "wanda": {},
    "sparsegpt": {},
    "admm": {},
    "refit": {},
    "alps": {},
    "ria": {},
    "group_obs": {},
    "gblm": {},
    "dass": {},
    "wanda_cumulative": {},
}
#: A mask source and a weight update that compose, shown at one sparsity.
COMPOSED: dict[str, dict[str, Any]] = {
    "ria+sparsegpt": {"name": "sparsegpt", "mask": "ria"},
    "magnitude+refit": {"name": "refit", "mask": "magnitude"},
    "wanda+admm": {"name": "admm", "mask": "wanda"},
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "magnitude_sp": {},
    "wanda_sp": {},
    "structured_obs": {},
    "flap": {},
    "column_refit": {},
    "taylor": {},
}
#: Depth: which blocks go is found by an allocator, with settings. Two of them run most of the
#: model once for each block: they get 2,048 tokens, about what was published.
DEPTH: dict[str, dict[str, Any]] = {
    "block_influence": {},
    "angular_distance": {},
    "block_taylor": {},
    "block_perplexity": {"sequences": 2},
    "sleb": {"sequences": 2},
}


@dataclass(frozen=True)
class Case:
    """One pruner at one sparsity; ``pattern`` for N:M, ``allocator`` instead of uniform."""

    name: str
    pruner: str
    settings: dict[str, Any]
    sparsity: float
    units: str = "weights"
    pattern: str | None = None
    allocator: str = "uniform"

    def build(self) -> Pruner:
        settings = {"name": self.pruner, **self.settings}
        if self.pattern:
            if self.pruner == "refit":
                settings["mask"] = {"name": "wanda", "pattern": self.pattern}
            else:
                settings["pattern"] = self.pattern
        pruner: Pruner = PRUNERS.create(settings.pop("name"), **settings)
        return pruner


def cases() -> Iterator[Case]:
    yield Case("dense", "magnitude", {}, 0.0)
    for pruner, settings in WEIGHTS.items():
        for sparsity in (0.5, 0.7):
            yield Case(f"{pruner}@{sparsity:.0%}", pruner, settings, sparsity)
        yield Case(f"{pruner}@2:4", pruner, settings, 0.5, pattern="2:4")
    for label, settings in COMPOSED.items():
        rest = dict(settings)
        yield Case(f"{label}@70%", rest.pop("name"), rest, 0.7)
    for sparsity in (0.125, 0.25):
        for pruner, settings in STRUCTURES.items():
            yield Case(f"{pruner}@{sparsity:.1%}", pruner, settings, sparsity, "width")
        yield Case(f"flap-global@{sparsity:.1%}", "flap", {}, sparsity, "width", None, "flap")
        for allocator in DEPTH:
            name = f"{allocator}@{sparsity:.1%}"
            yield Case(name, "drop", {}, sparsity, "blocks", None, allocator)
        name = f"block_influence+laco@{sparsity:.1%}"
        yield Case(name, "laco", {}, sparsity, "blocks", None, "block_influence")


def measure(case: Case, session: Session) -> dict[str, Any]:
    """Return perplexity, CPU seconds and notes of one case."""
    subject = PrunableModel(session.loaded.model, units=case.units)
    text, pruner = session.text["calibration"], case.build()
    with subject.preserved():
        started, wall = time.process_time(), time.monotonic()
        profile = _profile(case, subject, text)
        notes = prune_sequentially(subject, profile, pruner, text) if case.sparsity else []
        spent = time.process_time() - started
        proxy = EVALUATORS.create("perplexity").bind(session.loaded.model, session.text["test"])
        score = proxy.score(session.loaded.model, range(len(session.text["test"])))
    return {
        "perplexity": score.value,
        "cpu_seconds": round(spent, 1),
        "wall_seconds": round(time.monotonic() - wall, 1),
        "sparsity": profile.sparsity,
        "pruner": repr(pruner),
        "notes": len(notes),
        "first_note": notes[0] if notes else None,
    }


def _profile(case: Case, subject: PrunableModel, text: torch.Tensor) -> SparsityProfile:
    bounds = Bounds.of(subject.layout)
    if not case.sparsity:
        return subject.zeros()
    settings = DEPTH.get(case.allocator, {})
    found: SparsityProfile = ALLOCATORS.create(case.allocator, **settings).allocate(
        subject, text, Budget(case.sparsity), bounds
    )
    return found


def table(done: dict[str, dict[str, Any]], columns: list[str]) -> str:
    """Return a Markdown table: one row a pruner, perplexity (CPU seconds) a column."""
    rows = dict.fromkeys(name.partition("@")[0] for name in done if "@" in name)
    lines = ["| pruner | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        found = [done.get(f"{row}@{column}") for column in columns]
        if any(found):
            cells = [
                "-" if f is None else f"{f['perplexity']:.1f} ({f['cpu_seconds']:.0f} s)"
                for f in found
            ]
            lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the table of all cases in --out here")
    parser.add_argument("--case", nargs="*", default=["*"], help="shell patterns of case names")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = [c for c in cases() if any(fnmatch(c.name, p) for p in arguments.case)]
    done = {c.name: _read(arguments.out, c) for c in cases()}
    session = None
    for case in wanted:
        if done[case.name] is None:
            session = session or _session(arguments)
            figures = done[case.name] = measure(case, session)
            write_json(_file(arguments.out, case), figures)
            print(
                f"{case.name}: {figures['perplexity']:.2f}, {figures['cpu_seconds']} s", flush=True
            )
    known = {name: figures for name, figures in done.items() if figures is not None}
    print(table(known, ["50%", "70%", "2:4"]))
    print(table(known, ["12.5%", "25.0%"]))
    if arguments.table:
        rows = [{"case": name, **figures} for name, figures in known.items()]
        write_table(arguments.table, {"rows": rows})


def _session(arguments: argparse.Namespace) -> Session:
    options = {
        "model.name": "smollm2",
        "data.calibration": f"file:{arguments.calibration}",
        "data.calibration_sequences": 32,
    }
    config = load_config(None, options)
    test = Request("test", f"file:{arguments.test}", 40, 1024)
    return open_session(config.model, [request_calibration(config.data), test], 0, Monitor())


def _file(out: Path, case: Case) -> Path:
    return out / f"{slug(case.name)}.json"


def _read(out: Path, case: Case) -> dict[str, Any] | None:
    file = _file(out, case)
    return json.loads(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    main()
