"""Allocators beside each other on SmolLM2-135M: the table of docs/allocators.md.

Each part is one `sparsity-search compare`, which goes on where it was stopped:

    python benchmarks/allocators.py --calibration wikipedia_calibration.jsonl \
        --test wikitext2_valid.txt --out runs/allocators \
        --table benchmarks/results/allocators.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tables import counts_in, write_table  # the file beside this one

from sparsity_search.cli.terminal import TerminalMonitor, silence_libraries
from sparsity_search.config.load import load_config
from sparsity_search.config.schema import PluginSection
from sparsity_search.workflow.compare import compare
from sparsity_search.workflow.compare.cases import Plan

ALLOCATORS = (
    *(
        "gauss_newton",
        "gauss_newton[start=cfsp]",
        "knapsack",
        "cfsp",
        "owl",
        "dlp",
        "alpha_pruning",
        "alpha_pruning[tail=peak]",
    ),
    *("alpha_pruning[tail=peak;compat=true]", "ramp[slope=0.007]", "ramp[slope=0.0172]"),
    *("mrp", "dsa", "als", "er", "lamp", "global_magnitude", "pq_index"),
    *("essential", "besa"),
)
#: Other settings, measured in one place only.
VARIANTS = ("ramp[slope=0.0035]",)
#: The best of one seed, which two more seeds follow for.
LEADING = ("gauss_newton[start=cfsp]", "gauss_newton", "cfsp", "knapsack")
#: Pruner, sparsity, allocators and seeds of each part.
PARTS: dict[str, tuple[str, float, tuple[str, ...], int]] = {
    "wanda-70": ("wanda", 0.7, ALLOCATORS + VARIANTS, 1),
    "sparsegpt-70": ("sparsegpt", 0.7, ALLOCATORS, 1),
    "wanda-50": ("wanda", 0.5, ALLOCATORS, 1),
    "wanda-70-seeds": ("wanda", 0.7, LEADING, 3),
    "sparsegpt-70-seeds": ("sparsegpt", 0.7, LEADING, 3),
}


def table_of(out: Path) -> dict[str, Any]:
    """Return the layout, the facts of each pruner's comparison, all rows and all profiles."""
    table: dict[str, Any] = {"layout": [], "facts": {}, "rows": [], "profiles": {}}
    for file in sorted(out.glob("*/compare.json")):
        facts = json.loads(file.read_text())
        table["layout"] = facts.pop("layout")
        table["facts"][file.parent.name] = facts
        rows = sorted((file.parent / "rows").glob("*.json"))
        table["rows"] += [json.loads(row.read_text()) for row in rows]
        table["profiles"] |= counts_in(file.parent / "profiles")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("calibration", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--table", type=Path, help="write the table of all cases in --out here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    silence_libraries()
    options = {
        "model.name": "smollm2",
        "data.calibration": f"file:{arguments.calibration}",
        "data.calibration_sequences": 32,
        "data.final_text": f"file:{arguments.test}",
    }
    for part in arguments.part:
        pruner, sparsity, allocators, seeds = PARTS[part]
        plan = Plan(
            config=load_config(None, options),
            allocators=allocators,
            pruners={pruner: PluginSection(name=pruner)},
            sparsities=(sparsity,),
            seeds=seeds,
        )
        # rows of the first seed are the same: parts of one pruner share a folder
        with TerminalMonitor() as monitor:
            compare(plan, arguments.out / pruner, monitor=monitor)
    if arguments.table:
        write_table(arguments.table, table_of(arguments.out))


if __name__ == "__main__":
    main()
