"""Scores as files: a JSON file, and a ``.safetensors`` file with the losses of pairs of units."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparsity_search.errors import ConfigError, ProfileError, told_of
from sparsity_search.profiles.scores import SCORES_JSON, Scores
from sparsity_search.utils.files import atomic_file

#: Of the JSON: identifies the pairs in the other file, or null.
_PAIRS = "pairs"


def save_scores(path: Path, scores: Scores) -> None:
    """Write scores to ``path``, and their pairs to a ``.safetensors`` file of the same name.

    Each file is whole or absent. The JSON comes last and names the pairs that belong to it.

    Raises:
        ConfigError: The name ends in ``.safetensors`` itself.
    """
    if path.suffix == ".safetensors":
        raise ConfigError(f"scores are a JSON file, not {path}: name another --out")
    beside = path.with_suffix(".safetensors")
    if scores.pairs is not None:
        with atomic_file(beside) as temporary:
            save_file({_PAIRS: np.ascontiguousarray(scores.pairs)}, temporary)
    pairs = None if scores.pairs is None else _digest_pairs(scores.pairs)
    SCORES_JSON.write(path, {**scores.to_json(), _PAIRS: pairs})


def load_scores(path: Path) -> Scores:
    """Return the scores in a file, with their pairs if they have any.

    Raises:
        ConfigError: The file cannot be read.
        ProfileError: It holds no scores, is damaged, or its pairs are missing or of others.
    """
    facts = dict(SCORES_JSON.read(path))
    expected = facts.pop(_PAIRS, None)
    pairs = None if expected is None else _read_pairs(path, expected)
    with told_of(path):
        return Scores.from_json(facts, pairs)


def _read_pairs(path: Path, expected: str) -> np.ndarray:
    beside = path.with_suffix(".safetensors")
    try:
        pairs = np.asarray(load_file(beside)[_PAIRS])
    except (OSError, KeyError, SafetensorError) as error:
        raise ProfileError(f"the pairs of {path} cannot be read from {beside}") from error
    if _digest_pairs(pairs) != expected:
        raise ProfileError(f"{beside} holds the pairs of other scores than {path}")
    return pairs


def _digest_pairs(pairs: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pairs).tobytes()).hexdigest()[:16]
