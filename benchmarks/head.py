"""The head's part of one evaluation, on SmolLM2-135M: docs/speed.md.

The divergence of one model from another is read from their last hidden states, 4 x 512 positions,
in turns in one process on one thread: from full softmaxes of all logits, and in parts of the
vocabulary of several sizes. Errors are from the same in float64.

    python benchmarks/head.py --text wikipedia_heldout.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session
from sparsity_search.evaluators.bases.kl import PoolDivergence
from sparsity_search.models.running import head

SEQUENCES, LENGTH = 4, 512
#: Tokens of the vocabulary at once; the last is all of it.
TILES = (512, 1024, 2048, 4096, 49152)
#: The other model's hidden states are the dense ones times so much.
FACTOR = 1.1


def naive(model: nn.Module, expected: Tensor, states: Tensor) -> float:
    """Return the mean divergence from full softmaxes of all logits."""
    found = head.compute_logits(model, states).float().log_softmax(-1)
    total = nn.functional.kl_div(
        found, expected.float().log_softmax(-1), reduction="sum", log_target=True
    )
    return float(total) / states[..., 0].numel()


def exact(model: Any, dense: Tensor, states: Tensor) -> float:
    """Return the mean divergence in float64, row by row."""
    weight, total = model.get_output_embeddings().weight.double(), 0.0
    for before, after in zip(dense.double(), states.double(), strict=True):
        p, q = ((rows @ weight.T).log_softmax(-1) for rows in (before, after))
        total += float((p.exp() * (p - q)).sum())
    return total / states[..., 0].numel()


def tiled(model: nn.Module, dense: Tensor, states: Tensor, tile: int) -> Callable[[], float]:
    """Return our way in parts of a size; the dense model's probabilities are kept."""
    divergence = PoolDivergence(dense, cache_mib=1024, chunk=None)

    def score() -> float:
        with mock.patch.object(head, "TILE", tile):
            rows = [divergence.of(model, row, part) for row, part in enumerate(states)]
        return float(torch.stack(rows).mean())

    return score


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(None, {"model.name": "smollm2", "budget.sparsity": 0.7})
    request = Request("search", f"file:{arguments.text}", SEQUENCES, LENGTH)
    session = open_session(config.model, [request], 0, Monitor())
    model, text = session.loaded.model, session.text["search"]
    dense = torch.cat([head.compute_last_hidden(model, row[None]) for row in text])
    states, expected = dense * FACTOR, head.compute_logits(model, dense)
    ways = {"full softmaxes": lambda: naive(model, expected, states)}
    for tile in TILES:
        ways[f"parts of {tile}"] = tiled(model, dense, states, tile)
    truth = exact(model, dense, states)
    values = {name: way() for name, way in ways.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    base = seconds["full softmaxes"]
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(taken, base, strict=True)]
        print(
            f"| {name} | {statistics.median(taken):.2f} | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) | {abs(values[name] / truth - 1):.1e} |"
        )


if __name__ == "__main__":
    main()
