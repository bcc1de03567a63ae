"""Perplexity before and after recoveries: docs/recovery.md.

    python benchmarks/recovery.py --data DATA --out runs/recovery --minutes 5
    python benchmarks/recovery.py --out runs/recovery --table --results recovery.json

A case is a way to prune the packaged model and a recovery with its minutes. Pruned checkpoints and
finished cases are kept in ``--out`` and skipped. ``--case`` takes shell patterns.
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
from tables import slug, write_table

#: Options of `prune` for each way.
WAYS: dict[str, list[str]] = {
    **{
        f"{pruner}, {sparsity}%": ["--pruner", pruner, "--sparsity", f"0.{sparsity}"]
        for sparsity in (70, 60, 50)
        for pruner in ("sparsegpt", "wanda", "alps")
    },
    "sparsegpt, 2:4": ["--pruner", "sparsegpt", "--pattern", "2:4"],
    "structured_obs, 25%": ["--pruner", "structured_obs", "--sparsity", "0.25"],
}
#: Recoveries, and for which ways they are.
RECOVERIES = {"block": "*", "perp": "*", "distil": "*", "scales": "structured_obs*"}


@dataclass(frozen=True)
class Case:
    """A way to prune, and a recovery with its minutes; none for the pruned model alone."""

    way: str
    recovery: str = ""
    minutes: float = 0

    @property
    def name(self) -> str:
        return f"{self.way}, {self.recovery} {self.minutes:g} min" if self.recovery else self.way


def list_cases(minutes: list[float]) -> Iterator[Case]:
    for way in WAYS:
        yield Case(way)
        for each in minutes:
            for recovery, ways in RECOVERIES.items():
                if fnmatch(way, ways):
                    yield Case(way, recovery, each)


def run(case: Case, commands: Commands, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prune or recover, and measure."""
    text = ["--calibration", f"file:{arguments.data / 'wikipedia_calibration.jsonl'}"]
    home, log = arguments.out / slug(case.way), arguments.out / "log.txt"
    pruned = home / "pruned"
    if not pruned.exists():
        commands.run(["prune", arguments.model, *WAYS[case.way], *text, "--out", pruned], log)
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
        "way": case.way,
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
    before = {row["way"]: row["perplexity"] for row in rows if not row["recovery"]}
    for row in rows:
        share = "-"
        if row["recovery"] and row["way"] in before:
            gap = math.log(before[row["way"]] / dense)
            share = f"{math.log(before[row['way']] / row['perplexity']) / gap:.0%}"
        minutes = f"{row['seconds'] / 60:.1f}" if row["recovery"] else "-"
        cells = (row["way"], row["recovery"] or "-", minutes, f"{row['perplexity']:.1f}", share)
        yield f"| {' | '.join(cells)} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, help="folder of the texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 20.0])
    parser.add_argument("--windows", type=int, default=40, help="of 1,024 tokens of the test text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--results", type=Path, help="write all that is measured here")
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
                    found = measure_perplexity(arguments.model, arguments.data, arguments.windows)
                    row = {"way": "dense", "recovery": "", "perplexity": found}
                else:
                    row = run(case, commands, arguments)
                file.write_text(json.dumps(row))
            if file.exists():
                rows.append(json.loads(file.read_text()))
    dense = next((row["perplexity"] for row in rows if row["way"] == "dense"), math.nan)
    print("\n".join(format_table([row for row in rows if row["way"] != "dense"], dense)))
    if arguments.results:
        write_table(arguments.results, {"rows": rows})
    sys.exit(0)


if __name__ == "__main__":
    main()
