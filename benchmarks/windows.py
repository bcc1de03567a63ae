"""Whether mutations in a part of the depth cost a search quality, on SmolLM2-135M: docs/speed.md.

Searches from the uniform profile at 60% on Wanda's masks, which read the same tokens and differ in
`searcher.window` alone. Beside the score at the end: that of the whole depth at the moment when
the window's search was done. Searches resume, and are kept in ``OUT``:

    python benchmarks/windows.py --text wikipedia_heldout.jsonl --out runs/windows
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
from sparsity_search.config.load import load_config
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.stages import run_stages
from sparsity_search.runs.record import RunRecord, ScoreTrace, load_measurements, trace_scores

ROUNDS = 12
WHOLE, PART = 1.0, 1 / 6


def searched(window: float, seed: int, arguments: argparse.Namespace) -> ScoreTrace:
    """Return how the best score of a search fell; it is run if need be."""
    out = arguments.out / f"{window:.3g}, seed {seed}"
    options = {
        "model.name": "smollm2",
        "budget.sparsity": 0.6,
        "pruner.name": "wanda",
        "initial": ["uniform"],
        "data.calibration": f"file:{arguments.text}",
        "searcher": {"name": "evolution", "window": window},
        "study.seed": seed,
        "study.rounds": ROUNDS,
        "supernet.cache": str(arguments.out / "supernets"),
    }
    with TerminalMonitor(ROUNDS) as monitor:
        job = open_job(load_config(None, options), out, monitor)
        with job.directory.lock():
            if run_stages(job, command=["benchmarks/windows.py"]) is None:
                raise SystemExit(1)
    return trace_scores(load_measurements(out), RunRecord.read(out).top_rung)


def at(seconds: float, of: ScoreTrace) -> float:
    """Return the best score of a search after so many seconds."""
    return min(score for score, then in zip(of.scores, of.elapsed, strict=True) if then <= seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    print("| seed | start | whole depth | window | of the seconds | whole, in those |", flush=True)
    gains = []
    for seed in arguments.seeds:
        whole, part = (searched(window, seed, arguments) for window in (WHOLE, PART))
        start, seconds = whole.scores[0], part.elapsed[-1]
        gains.append([1 - found.scores[-1] / start for found in (whole, part)])
        cells = start, whole.scores[-1], part.scores[-1], seconds / whole.elapsed[-1]
        told = " | ".join(f"{x:.3f}" for x in (*cells, at(seconds, whole)))
        print(f"| {seed} | {told} |", flush=True)
    whole_gain, part_gain = map(statistics.median, zip(*gains, strict=True))
    print(f"median gain: whole depth {whole_gain:.1%}, window {part_gain:.1%}")


if __name__ == "__main__":
    main()
