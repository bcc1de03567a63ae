"""What methods gain, from the tables of the benchmarks: ``sparsity_search/plans/gains.json``.

    python benchmarks/gains.py

`recommend` reads the file, and a test compares it with the tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables import RESULTS, read_table, write_table  # this file is beside this one

FILE = Path(__file__).parents[1] / "sparsity_search" / "plans" / "gains.json"
#: Digits of a ratio.
_DIGITS = 3


def list_allocators() -> Iterator[dict[str, Any]]:
    """Yield the gain of each allocator with its defaults, for each pruner and sparsity.

    It is the geometric mean, over seeds, of its perplexity as a multiple of that of uniform.
    """
    rows = {row["key"]: row for row in read_table(RESULTS / "allocators.json")["rows"]}
    cases: dict[tuple[str, str, float], list[float]] = {}
    for row in rows.values():
        uniform = rows[f"{row['pruner']}-{round(100 * row['target'])}-uniform-seed{row['seed']}"]
        case = (row["allocator"], row["pruner"], row["target"])
        ratio = row["perplexity"] / uniform["perplexity"]
        cases.setdefault(case, []).append(ratio)
    for (allocator, pruner, sparsity), ratios in sorted(cases.items()):
        if "[" not in allocator:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            yield {
                "allocator": allocator,
                "pruner": pruner,
                "sparsity": sparsity,
                "ratio": round(mean, _DIGITS),
                "seeds": len(ratios),
                "source": "docs/allocators.md",
            }


def list_pruners() -> Iterator[dict[str, Any]]:
    """Yield the perplexity of the uniform profile by pruner, as a multiple of SparseGPT's."""
    rows = {row["case"]: row for row in read_table(RESULTS / "pruners.json")["rows"]}
    for case, row in sorted(rows.items()):
        pruner, _, at = case.partition("@")
        reference = rows.get(f"sparsegpt@{at}")
        if at.endswith("%") and reference is not None and "+" not in pruner:
            yield {
                "pruner": pruner,
                "sparsity": row["sparsity"],
                "ratio": round(row["perplexity"] / reference["perplexity"], _DIGITS),
                "seconds": row["cpu_seconds"],
                "source": "docs/pruners.md",
            }


def make_table() -> dict[str, Any]:
    """Return the contents of the file."""
    return {"allocators": list(list_allocators()), "pruners": list(list_pruners())}


if __name__ == "__main__":
    write_table(FILE, make_table())
