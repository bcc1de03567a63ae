"""Seconds to the first output of commands, and to their end.

    python benchmarks/first_output.py --results benchmarks/results/first_output.json

Each command runs several times in a process of its own; the least time is told. Commands that
would take minutes are killed after their first output.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tables import write_table  # this file is beside this one

#: Arguments by what they show; those of the model follow ``MODEL``.
COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "search --help": ["search", "--help"],
    "ls pruners": ["ls", "pruners"],
    "an unknown command": ["serch"],
    "an unknown preset": ["search", "MODEL", "--sparsity", "0.5", "--config", "evopres"],
    "an unknown pruner": ["search", "MODEL", "--sparsity", "0.5", "--pruner", "wnada"],
    "a wrong model": ["search", "./no/such/model", "--sparsity", "0.5"],
    "search": ["search", "MODEL", "--sparsity", "0.5", "--dry-run"],
    "inspect": ["inspect", "MODEL"],
}


def time_command(arguments: list[str]) -> tuple[float, float | None]:
    """Return the seconds to the first byte, and to the end; None if it was killed before."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsity_search", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.monotonic() - started
    try:
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return first, None
    return first, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name, words in COMMANDS.items():
        told = [arguments.model if word == "MODEL" else word for word in words]
        runs = [time_command(told) for _ in range(arguments.repeats)]
        first = min(run[0] for run in runs)
        ends = [run[1] for run in runs if run[1] is not None]
        whole = min(ends) if len(ends) == len(runs) else None
        rows.append({"command": name, "first": round(first, 2), "end": whole and round(whole, 2)})
        print(f"{name:<20} {first:6.2f} s {'-' if whole is None else f'{whole:6.2f} s'}")
    if arguments.results:
        write_table(arguments.results, {"rows": rows})


if __name__ == "__main__":
    main()
