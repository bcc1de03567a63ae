"""Tiny random models of 64 families of 2024 to 2026 through the whole program: docs/models.md.

Each family is inspected, pruned with Wanda to 50% and with SparseGPT to 2:4, searched for two
rounds, verified and loaded again; see `sparsity_search.testing.families.program`. This takes some
seconds a family, on one thread. Families that were run with the present code are not run again.
The table goes to `benchmarks/results/families.json` and to docs/models.md.

    python benchmarks/families.py --out runs/families
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tables import RESULTS, write_table  # the file beside this one

import sparsity_search
from sparsity_search.cli.terminal import silence_libraries
from sparsity_search.errors import ExperimentalWarning
from sparsity_search.testing.families import FAMILIES
from sparsity_search.testing.families.program import NOT_RUN, run_program
from sparsity_search.utils.files import write_json, write_text

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
#: What stands before and behind the table in the page.
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
#: Heads of the table's columns, by step.
COLUMNS = {
    "inspect": "`inspect`",
    "wanda": "Wanda 50%",
    "2:4": "SparseGPT 2:4",
    "search": "search",
    "verify": "`verify`",
    "reload": "loaded again",
}


def compute_code_digest() -> str:
    """Return a digest of the package's code and of the versions of the libraries."""
    total = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for file in sorted(Path(sparsity_search.__file__).parent.rglob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def run_family(name: str, out: Path, code: str) -> dict[str, Any]:
    """Return the row of a family, from its file if the code is the same."""
    file, family = out / f"{name}.json", FAMILIES[name]
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("code") != code:
        outcome = run_program(family, out / name)
        known = {"code": code, "left": outcome.left, "faults": outcome.faults}
        write_json(file, known)
    row = {"family": name, "label": family.label, "architecture": family.architecture}
    return {**row, "left": known["left"], "faults": known["faults"]}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown, and the lines of all faults below it."""
    heads = ["family", *COLUMNS.values(), "left alone"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(COLUMNS) + "|---|---:|"]
    notes: dict[str, int] = {}
    for row in rows:
        cells = [row["label"]]
        for step in COLUMNS:
            fault = row["faults"][step]
            number = notes.setdefault(fault, len(notes) + 1) if fault not in ("", NOT_RUN) else 0
            cells.append(f"no ({number})" if number else fault or "yes")
        cells.append("not run" if row["left"] is None else f"{100 * row['left']:.1f}%")
        lines.append(f"| {' | '.join(cells)} |")
    works = sum(not any(row["faults"].values()) for row in rows)
    listed = [f"{number}. {fault}" for fault, number in notes.items()]
    summary = f"{works} of {len(rows)} families pass every step."
    return "\n".join([*lines, "", summary, *([""] if listed else []), *listed]) + "\n"


def write_page(table: str) -> None:
    """Write the table into the page, in place of the last one."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    write_text(PAGE, pattern.sub(lambda _: f"\n{table}\n", page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_libraries()
    warnings.simplefilter("ignore", ExperimentalWarning)
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["SPARSITY_SEARCH_CACHE"] = str(arguments.out / "cache")
    code, rows = compute_code_digest(), []
    for name in arguments.families:
        rows.append(run_family(name, arguments.out, code))
        faults = {step: fault for step, fault in rows[-1]["faults"].items() if fault}
        print(f"{name}: {faults or 'passes every step'}", flush=True)
    if len(rows) == len(FAMILIES):
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_table(RESULTS / "families.json", {"versions": versions, "rows": rows})
        write_page(format_table(rows))


if __name__ == "__main__":
    main()
