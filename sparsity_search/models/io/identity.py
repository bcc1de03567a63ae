"""The identity of what is measured, which every cache and every fingerprint includes.

A score depends on more than the weights: the configuration says how they compute (rotary base,
epsilon of the norms, window of the attention), the tokenizer turns text into the tokens that are
scored, and libraries change results between versions.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import sparsity_search
from sparsity_search.models.io.offload import get_offload
from sparsity_search.models.io.tensor_bytes import to_bytes
from sparsity_search.utils.files import compute_digest

#: Keys of the weights, the configuration and the tokenizer.
WEIGHTS, CONFIG, TOKENIZER = "model", "model.config", "tokenizer"

#: Fields of a configuration or of a tokenizer's settings that say where it is from and how it
#: is stored. The number type of the weights is part of their digest.
_BOOKKEEPING = {
    *("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype"),
    *("torch_dtype", "chat_template", "is_local", "local_files_only", "processor_class"),
}


def identify(model: torch.nn.Module, tokenizer: Any) -> dict[str, str]:
    """Return the identity of what is measured on a model, as a flat mapping.

    Args:
        model: A model of transformers, as it is now.
        tokenizer: Its tokenizer; None if it has none.
    """
    return {
        **identify_model(model),
        TOKENIZER: compute_tokenizer_digest(tokenizer),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sparsity-search": sparsity_search.__version__,
    }


def identify_model(model: torch.nn.Module) -> dict[str, str]:
    """Return the part of `identify` that belongs to the model alone: weights and configuration."""
    return {WEIGHTS: compute_weights_digest(model), CONFIG: compute_config_digest(model.config)}


def compute_weights_digest(model: torch.nn.Module) -> str:
    """Return 16 hexadecimal digits over names, types, shapes and bytes of all weights.

    Tied weights count once.
    """
    total, offload = hashlib.sha256(), get_offload(model)
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        key = (tensor.data_ptr(), tensor.shape)
        if key in seen:
            continue
        seen.add(key)
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(to_bytes(tensor).numpy().data)
        if offload is not None:
            offload.release()
    return total.hexdigest()[:16]


def compute_config_digest(config: Any) -> str:
    """Return 16 hexadecimal digits over a configuration as it computes.

    Defaults count, and so do the implementations of attention and experts, which round
    differently. Names, paths, versions and generation settings do not.

    Args:
        config: A configuration of transformers.
    """
    text = config.to_json_string(use_diff=False)
    fields = _drop_bookkeeping(json.loads(text, parse_constant=str))  # Infinity as a text
    parts = ("_attn_implementation", "_experts_implementation")
    return compute_digest([fields, *(getattr(config, part, None) for part in parts)])


def compute_tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hexadecimal digits over the vocabulary, the rules and the special tokens.

    Args:
        tokenizer: A tokenizer of transformers, fast or slow; None if the model has none.
    """
    if tokenizer is None:
        return compute_digest(None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = _read_saved(tokenizer) if backend is None else backend.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return compute_digest([rules, special])


def _read_saved(tokenizer: Any) -> dict[str, Any]:
    """Return what a tokenizer in Python saves: digests of its files, and its settings."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            if file.name == "tokenizer_config.json":
                settings = _drop_bookkeeping(json.loads(file.read_text("utf-8")))
                # reloading adds some that are null
                found[file.name] = {k: v for k, v in settings.items() if v is not None}
            else:
                found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _drop_bookkeeping(value: Any) -> Any:
    """Return a JSON value without the fields of `_BOOKKEEPING`, at any depth."""
    if isinstance(value, Mapping):
        return {k: _drop_bookkeeping(v) for k, v in value.items() if k not in _BOOKKEEPING}
    if isinstance(value, list):
        return [_drop_bookkeeping(each) for each in value]
    return value
