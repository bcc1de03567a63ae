"""Perplexity before and after recoveries: docs/recovery.md.

    python benchmarks/recovery.py --data DATA --out runs/recovery --minutes 5 \
        --results benchmarks/results/recovery.json
    python benchmarks/recovery.py --model gemma=gemma.gguf --data DATA --out runs/gemma \
        --windows 20 --case '*by blocks, 60%*'

A case is a way to prune a model and a recovery with its minutes. Pruned checkpoints, and finished
cases, are kept in ``--out`` and skipped. ``--case`` takes shell patterns. Rows are added to
``--results``; ``--table`` measures nothing and shows what is in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from commands import Commands, take_turns  # these files are beside this one
from quality import measure_perplexity
from tables import merge_rows, slug

#: Options of SparseGPT as in its paper: statistics by block, outputs of the pruned model alone.
_BY_BLOCKS = ["--set", "pruner.towards_dense=0", "--set", "data.refresh=block"]
#: Options of `prune` for each way.
WAYS: dict[str, list[str]] = {
    **{
        f"{pruner}, {sparsity}%": ["--pruner", pruner, "--sparsity", f"0.{sparsity}"]
        for sparsity in (70, 60, 50)
        for pruner in ("sparsegpt", "wanda", "alps", "admm")
    },
    **{
        f"sparsegpt by blocks, {sparsity}%": [
            *("--pruner", "sparsegpt", "--sparsity", f"0.{sparsity}"),
            *_BY_BLOCKS,
        ]
        for sparsity in (70, 60)
    },
    "sparsegpt, 2:4": ["--pruner", "sparsegpt", "--pattern", "2:4"],
    "structured_obs, 25%": ["--pruner", "structured_obs", "--sparsity", "0.25"],
}
#: Options of `allocate` for profiles in place of the uniform one.
PROFILES: dict[str, list[str]] = {
    "owl": ["--allocator", "owl"],
    "cfsp": ["--allocator", "cfsp"],
    "gauss_newton": [
        *("--allocator", "gauss_newton", "--pruner", "sparsegpt"),
        *("--set", "allocators.gauss_newton={start: cfsp, reach: 0.05}"),
    ],
}
#: The way in which profiles are compared.
_COMPARED = "admm, 70%"
#: Recoveries, and for which ways they are.
RECOVERIES = {"block": "*", "perp": "*", "distil": "*", "scales": "structured_obs*"}


@dataclass(frozen=True)
class Case:
    """A way to prune to a profile, and a recovery with its minutes; none for the pruned model."""

    way: str
    recovery: str = ""
    minutes: float = 0
    profile: str = "uniform"

    @property
    def pruned(self) -> str:
        """How the model is pruned."""
        return f"{self.way}, {self.profile}" if self.profile in PROFILES else self.way

    @property
    def name(self) -> str:
        recovery = f"{self.recovery} {self.minutes:g} min" if self.recovery else ""
        return ", ".join(filter(None, (self.pruned, recovery)))


def list_cases(minutes: list[float]) -> Iterator[Case]:
    for way in WAYS:
        for profile in ("uniform", *(PROFILES if way == _COMPARED else ())):
            yield Case(way, profile=profile)
            for each in minutes:
                for recovery, ways in RECOVERIES.items():
                    if fnmatch(way, ways):
                        yield Case(way, recovery, each, profile)


def run(case: Case, commands: Commands, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prune or recover, and measure."""
    text = ["--calibration", f"file:{arguments.data / 'wikipedia_calibration.jsonl'}"]
    home, log = arguments.out / slug(case.pruned), arguments.out / "log.txt"
    model, pruned = arguments.model.rpartition("=")[2], home / "pruned"
    if not pruned.exists():
        options = WAYS[case.way]
        if case.profile in PROFILES:
            budget = options[options.index("--sparsity") :][:2]
            profile = ["--out", arguments.out / f"{case.profile}.json"]
            commands.run(
                ["allocate", model, *PROFILES[case.profile], *budget, *text, *profile], log
            )
            options = [*options[: options.index("--sparsity")], "--profile", profile[1]]
        commands.run(["prune", model, *options, *text, "--out", pruned], log)
    checkpoint, seconds = pruned, 0.0
    if case.recovery:
        checkpoint = home / slug(case.name)
        shutil.rmtree(checkpoint, ignore_errors=True)
        limit = ["--minutes", case.minutes, "--method", case.recovery]
        started = time.monotonic()
        commands.run(["recover", pruned, *limit, *text, "--out", checkpoint], log)
        seconds = time.monotonic() - started
        commands.run(["verify", checkpoint], log)
    perplexity = measure_perplexity(str(checkpoint), arguments.data, arguments.windows)
    stored = json.loads((checkpoint / "profile.json").read_text())
    if case.recovery:
        shutil.rmtree(checkpoint)
    return {
        "model": arguments.model.partition("=")[0],
        "way": case.way,
        "profile": case.profile,
        "recovery": case.recovery,
        "minutes": case.minutes,
        "seconds": round(seconds, 1),
        "perplexity": perplexity,
        "told": stored.get("recovery"),
    }


def format_table(rows: list[dict[str, Any]], dense: float) -> Iterator[str]:
    """Yield a Markdown table; the last column is the share of the gap to the dense model."""
    yield "| pruned with | recovery | minutes | perplexity | share of the gap closed |"
    yield "|---|---|---:|---:|---:|"
    before = {
        (row["way"], row["profile"]): row["perplexity"] for row in rows if not row["recovery"]
    }
    for row in rows:
        share, way = "-", (row["way"], row["profile"])
        if row["recovery"] and way in before:
            gap = math.log(before[way] / dense)
            share = f"{math.log(before[way] / row['perplexity']) / gap:.0%}"
        minutes = f"{row['seconds'] / 60:.1f}" if row["recovery"] else "-"
        pruned = ", ".join(way)
        cells = (pruned, row["recovery"] or "-", minutes, f"{row['perplexity']:.1f}", share)
        yield f"| {' | '.join(cells)} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a name or LABEL=PATH")
    parser.add_argument("--data", type=Path, help="folder of the texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 20.0])
    parser.add_argument("--windows", type=int, default=40, help="of 1,024 tokens of the test text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--results", type=Path, help="add all that is measured to this table")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases = [Case("dense"), *list_cases(arguments.minutes)]
    rows = []
    with take_turns(arguments.out, arguments.threads) as commands:
        for case in cases:
            file = arguments.out / f"{slug(case.name)}.json"
            wanted = not arguments.table and any(fnmatch(case.name, p) for p in arguments.case)
            if not file.exists() and wanted:
                print(f"{case.name}: begun", flush=True)
                if case.way == "dense":
                    label, _, path = arguments.model.rpartition("=")
                    found = measure_perplexity(path, arguments.data, arguments.windows)
                    row = {"model": label or path, "way": "dense", "perplexity": found}
                else:
                    row = run(case, commands, arguments)
                file.write_text(json.dumps(row))
            if file.exists():
                rows.append(json.loads(file.read_text()))
    dense = next((row["perplexity"] for row in rows if row["way"] == "dense"), math.nan)
    print("\n".join(format_table([row for row in rows if row["way"] != "dense"], dense)))
    if arguments.results:
        merge_rows(arguments.results, rows, "model", "way", "profile", "recovery", "minutes")
    sys.exit(0)


if __name__ == "__main__":
    main()
