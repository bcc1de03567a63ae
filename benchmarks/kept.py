"""Statistics gathered anew beside those that are kept, on SmolLM2-135M: docs/speed.md.

Supernets on dense inputs are built with statistics gathered anew, gathered and kept, and reused,
in turns in one process, on one thread, in CPU seconds; files are read from the system's cache.

    python benchmarks/kept.py --text wikipedia_calibration.jsonl
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from supernet import opened  # the file beside this one

from sparsity_search.models.io.identity import identify
from sparsity_search.models.running.statistics_cache import StatisticsCache
from sparsity_search.registry import PRUNERS
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.utils.files import write_json

#: What is done, and with what in the folder: nothing, as without one; nothing yet; all.
WAYS = ("anew", "anew and kept", "reused")


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    subject, tokens, space = opened(arguments)
    kept = StatisticsCache(folder, identify(subject.model, None))
    rows = []
    for name in ("wanda", "sparsegpt"):
        pruner = PRUNERS.create(name)
        plan = SupernetDesign(
            pruner=pruner, tables=space.tables(), centre=space.base, propagate="dense"
        )
        row: dict[str, Any] = {"pruner": name}
        for _ in range(arguments.repeats):
            for way in WAYS:
                if way == "anew and kept":
                    shutil.rmtree(folder, ignore_errors=True)
                subject.kept = None if way == "anew" else kept
                started = time.process_time()
                build_supernet(subject, tokens, plan)
                row.setdefault(way, []).append(time.process_time() - started)
        row["ratio"] = [a / b for a, b in zip(row["reused"], row["anew"], strict=True)]
        files = [file.stat().st_size for file in folder.glob("*/*.safetensors")]
        rows.append({**row, "bytes": sum(files) / arguments.blocks})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return medians with their range: CPU seconds, reused to anew, megabytes of a block."""
    columns = [*WAYS, "ratio"]
    lines = [["pruner", *columns, "MB a block"], ["---", *["---:"] * (len(columns) + 1)]]
    for row in rows:
        times = [_told(row[column]) for column in columns]
        lines.append([row["pruner"], *times, f"{row['bytes'] / 1e6:.3g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder) / "statistics")
    print(table(rows))
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
