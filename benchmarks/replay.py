"""What sequential pruning gains where rewritten submodules do not run again: docs/speed.md.

The first blocks of SmolLM2-135M are pruned with and without, in turns in one process; the weights
are compared to the bit. Seconds are those of all threads of this process:

    python benchmarks/replay.py --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.running import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS


@contextmanager
def watch_nothing(*_: object) -> Iterator[list[object]]:
    """Find no submodules that need not run again."""
    yield []


def prune(subject: PrunableModel, name: str, tokens: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Return the CPU seconds of pruning, and the weights; the model stays as it was."""
    profile, pruner = Budget(0.7).uniform(subject.layout), PRUNERS.create(name)
    with subject.preserved():
        started = time.process_time()
        prune_sequentially(subject, profile, pruner, tokens)
        seconds = time.process_time() - started
        return seconds, dict(subject.snapshot())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pruners", nargs="+", default=["wanda", "sparsegpt", "admm", "alps"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=16, help="of 1,024 tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model: Any = load_model("smollm2").model
    model.model.layers = model.model.layers[: arguments.blocks]
    model.config.num_hidden_layers = arguments.blocks
    subject = PrunableModel(model)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.sequences, 1024)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    for name in arguments.pruners:
        pairs = []
        for _ in range(arguments.repeats):
            with patch.object(walk, "watch_closings", watch_nothing):
                whole, expected = prune(subject, name, tokens)
            replayed, found = prune(subject, name, tokens)
            assert all(torch.equal(found[unit], expected[unit]) for unit in expected)
            pairs.append((whole, replayed))
        ratios = [replayed / whole for whole, replayed in pairs]
        print(
            f"{name}: {statistics.median(whole for whole, _ in pairs):.1f} CPU s without, "
            f"{statistics.median(ratios):.2f} of it with "
            f"({min(ratios):.2f} to {max(ratios):.2f}); equal weights",
            flush=True,
        )


if __name__ == "__main__":
    main()
