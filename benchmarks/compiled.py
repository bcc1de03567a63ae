"""Whether `torch.compile` of the decoder blocks pays in an evaluation: docs/speed.md.

SmolLM2-135M, 4 x 512 tokens, eager and compiled blocks in turns in one process, on one thread;
CPU seconds.

    python benchmarks/compiled.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparsity_search.models.io.loading import load_model

TOKENS = torch.arange(2048).view(4, 512)


def seconds(model: Any, forwards: Sequence[Callable[..., Any]]) -> float:
    """Return the CPU seconds of a pass through the decoder with these blocks."""
    for block, forward in zip(model.base_model.layers, forwards, strict=True):
        block.forward = forward
    started = time.process_time()
    with torch.inference_mode():
        model.base_model(input_ids=TOKENS, use_cache=False)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    model: Any = load_model("smollm2").model
    torch._dynamo.config.cache_size_limit = len(model.base_model.layers) + 8
    eager = [block.forward for block in model.base_model.layers]
    compiled = [torch.compile(forward, dynamic=False) for forward in eager]
    seconds(model, eager)
    started = time.perf_counter()
    first = seconds(model, compiled)
    print(f"first pass: {first:.1f} CPU s here, {time.perf_counter() - started:.0f} s in all")
    pairs = [(seconds(model, eager), seconds(model, compiled)) for _ in range(repeats)]
    ratios = [theirs / ours for ours, theirs in pairs]
    print(
        f"{model.dtype}: eager {statistics.median(ours for ours, _ in pairs):.2f} CPU s, compiled "
        f"{statistics.median(ratios):.2f} of it ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
