"""Questions whose right choice is the one that the tiny model prefers."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsity_search.testing.models import tiny_tokenizer


def words(source: random.Random, n_letters: int) -> str:
    return "".join(source.choice(string.ascii_lowercase) for _ in range(n_letters))


def questions(n: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return random questions of three or four choices, the first one right."""
    source = random.Random(seed)
    return [
        {
            "query": f"Question: {words(source, source.randint(5, 12))}?",
            "choices": [words(source, source.randint(3, 9)) for _ in range(3 + index % 2)],
            "gold": 0,
        }
        for index in range(n)
    ]


def log_likelihoods(model: nn.Module, row: dict[str, Any]) -> list[float]:
    """Return the log-likelihood of each choice after the query, one at a time in float64."""
    tokenizer, found = tiny_tokenizer(), []
    before = tokenizer(f"{row['query']}\nAnswer:")["input_ids"]
    for choice in row["choices"]:
        ids = before + tokenizer(f" {choice}")["input_ids"]
        with torch.inference_mode():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(float(sum(log_p[at - 1, ids[at]] for at in range(len(before), len(ids)))))
    return found


def easy(n: int, model: nn.Module) -> list[dict[str, Any]]:
    """Return questions that the model answers rightly."""
    rows = questions(n)
    for row in rows:
        found = log_likelihoods(model, row)
        scores = [score / len(c) for score, c in zip(found, row["choices"], strict=True)]
        row["gold"] = scores.index(max(scores))
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
