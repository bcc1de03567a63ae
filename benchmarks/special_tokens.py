"""Perplexity with and without special tokens before each sequence: the table of docs/models.md.

Gemma 3 is a model that was trained with BOS before every text:

    python benchmarks/special_tokens.py gemma-3-270m-q4_k_m.gguf \
        --calibration wikipedia_calibration.jsonl --test wikipedia_heldout.jsonl \
        --table benchmarks/results/special_tokens.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch
from tables import write_table  # the file beside this one

from sparsity_search.data.sequences import Request, draw
from sparsity_search.data.special_tokens import SpecialTokens
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import LoadedModel, load_model
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS, PRUNERS

LENGTH, SEQUENCES, SPARSITY = 512, {"calibration": 16, "test": 10}, 0.5
SETTINGS = get_args(SpecialTokens)


def read(loaded: LoadedModel, purpose: str, file: Path) -> dict[str, torch.Tensor]:
    """Return the same text under each setting."""
    size = SEQUENCES[purpose], LENGTH
    return {
        s: draw([Request(purpose, f"file:{file}", *size, s)], loaded, 0)[purpose] for s in SETTINGS
    }


def score(loaded: LoadedModel, texts: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the perplexity under each setting."""
    evaluator, model = EVALUATORS.create("perplexity"), loaded.model
    return {
        setting: evaluator.bind(model, text).score(model, range(len(text))).value
        for setting, text in texts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, dtype=arguments.dtype, device="cpu")
    calibration = read(loaded, "calibration", arguments.calibration)
    test = read(loaded, "test", arguments.test)
    subject = PrunableModel(loaded.model)
    profile = Budget(SPARSITY).uniform(subject.layout)
    rows: list[dict[str, Any]] = [{"case": "dense", **score(loaded, test)}]
    for setting, tokens in calibration.items():
        with subject.preserved():
            prune_sequentially(subject, profile, PRUNERS.create("wanda"), tokens)
            rows.append({"case": f"calibrated with {setting}", **score(loaded, test)})
        print(rows[-1], flush=True)
    facts = {
        "model": Path(arguments.model).name,
        "dtype": arguments.dtype,
        "digest": loaded.digest,
    }
    write_table(arguments.table, {"facts": facts, "rows": rows})


if __name__ == "__main__":
    main()
