"""Text that a model samples from itself: data without any corpus, and without leaks."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from sparsity_search.errors import DataError
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.utils.files import atomic_file, digest

_LOG = logging.getLogger(__name__)
#: Raised whenever the same seed would give other text than before.
_FORMAT = 1
#: Bounds the key-value cache: 64 sequences of 512 tokens at once, 16 of 2048.
_TOKENS_AT_ONCE = 32_768


def sample_text(
    model: PreTrainedModel, tokenizer: Any, *, n_sequences: int, length: int, seed: int
) -> Tensor:
    """Sample token sequences from the model's full distribution, from BOS on.

    The temperature is 1 and nothing is cut off. The end token ends a document, not the
    sequence: sampling goes on. Equal seeds give equal text at an equal thread count.

    Args:
        model: A causal model.
        tokenizer: Names the first token, which is part of the sequence.
        n_sequences: Number of sequences.
        length: Tokens in each, with the first.
        seed: Of a generator that is only used here.

    Returns:
        Token ids of shape (n_sequences, length), int64, on the CPU.

    Raises:
        DataError: The model has neither a BOS nor an EOS token to start from.
    """
    first = _first_token(model, tokenizer)
    # drawn beforehand, so that a sequence's draws do not depend on how many run at once
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(n_sequences, length - 1, generator=generator)
    at_once = max(1, _TOKENS_AT_ONCE // length)
    return torch.cat([_sample_batch(model, first, batch) for batch in torch.split(draws, at_once)])


def cached_sample(loaded: LoadedModel, *, n_sequences: int, length: int, seed: int) -> Tensor:
    """Return `sample_text`, kept on disk so that a model samples the same text only once.

    The folder is ``$SPARSITY_SEARCH_CACHE``, by default ``~/.cache/sparsity_search``.
    """
    key = {
        "format": _FORMAT,
        "model": loaded.digest,
        "dtype": str(loaded.model.dtype),
        "n_sequences": n_sequences,
        "length": length,
        "seed": seed,
    }
    path = cache_folder() / "self_text" / f"{digest(key)}.safetensors"
    found = _read(path, (n_sequences, length))
    if found is not None:
        return found
    _LOG.info("sampling %d sequences of %d tokens from %s", n_sequences, length, loaded.name)
    tokens = sample_text(
        loaded.model, loaded.tokenizer, n_sequences=n_sequences, length=length, seed=seed
    )
    _write(path, tokens)
    return tokens


def cache_folder() -> Path:
    """Return the folder for what can be computed again."""
    folder = os.environ.get("SPARSITY_SEARCH_CACHE", "~/.cache/sparsity_search")
    return Path(folder).expanduser()


def _first_token(model: PreTrainedModel, tokenizer: Any) -> int:
    for owner in (tokenizer, model.config.get_text_config()):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(owner, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    raise DataError("the model has no token to start its own text from: give a text source")


@torch.no_grad()
def _sample_batch(model: PreTrainedModel, first: int, draws: Tensor) -> Tensor:
    """Sample one batch; ``draws`` (batch, length - 1) are uniform numbers in [0, 1)."""
    n_sequences, steps = draws.shape
    tokens = torch.full((n_sequences, steps + 1), first)
    draws = draws.to(model.device)
    cache = _cache(model, steps + 1)
    for step in range(steps):
        unread = tokens[:, step if cache else 0 : step + 1].to(model.device)
        output = model(input_ids=unread, use_cache=bool(cache), **cache)
        tokens[:, step + 1] = _choose(output.logits[:, -1], draws[:, step : step + 1])[:, 0].cpu()
    return tokens


def _cache(model: PreTrainedModel, length: int) -> dict[str, StaticCache]:
    """Return an empty cache as an argument of the model, or nothing if it cannot take one."""
    names = inspect.signature(model.forward).parameters
    if {"cache_params", "cache_position"} <= names.keys():  # state spaces, in older releases
        return {}
    # a model would ignore the other name, and sample each token as if it were the first
    name = "cache_params" if "cache_params" in names else "past_key_values"
    # all memory at once: growing the cache step by step takes twice the time in bfloat16
    return {name: StaticCache(config=model.config, max_cache_len=length)}


def _choose(logits: Tensor, draws: Tensor) -> Tensor:
    """Invert the cumulative distribution: (batch, vocabulary), (batch, 1) -> (batch, 1)."""
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    return found.clamp_(max=logits.shape[-1] - 1)


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        tokens = load_file(path)["tokens"]
    except (OSError, SafetensorError, KeyError):
        return None  # absent or damaged: it is sampled anew
    return tokens if tuple(tokens.shape) == shape and tokens.dtype == torch.int64 else None


def _write(path: Path, tokens: Tensor) -> None:
    try:
        with atomic_file(path) as temporary:
            save_file({"tokens": tokens}, temporary)
    except OSError as error:
        _LOG.warning("cannot keep sampled text in %s: %s", path.parent, error)
