"""Text that a model samples itself, which needs no corpus and cannot leak test data."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from sparsity_search.data.special_tokens import find_prefix
from sparsity_search.errors import DataError
from sparsity_search.models.io.block_files import BlockFiles
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.models.io.vocabulary import check_tokens
from sparsity_search.utils.cache import get_cache_folder
from sparsity_search.utils.files import compute_digest

_LOG = logging.getLogger(__name__)
#: Version of the sampler; it increases whenever the same seed would give different text.
_FORMAT = 1
#: Bound of the key-value cache: 64 sequences of 512 tokens at once, 16 of 2048.
_TOKENS_AT_ONCE = 32_768
#: Name of the tensor in the cache.
_TOKENS = "tokens"


def sample_text(
    model: PreTrainedModel, tokenizer: Any, *, n_sequences: int, length: int, seed: int
) -> Tensor:
    """Sample token sequences from the model's full distribution, from the start of a document.

    The temperature is 1, without top-k or top-p truncation. The end token ends a document, but
    not the sequence. Equal seeds give equal text for an equal number of threads.

    Args:
        model: A causal model.
        tokenizer: Its tokenizer, see `find_first_tokens`.
        n_sequences: Number of sequences.
        length: Tokens per sequence, including the first ones.
        seed: Seed of a generator that is used only here.

    Returns:
        Token ids of shape (n_sequences, length), int64, on the CPU.

    Raises:
        DataError: The model has neither a BOS nor an EOS token to start from.
        ModelError: Its embedding has no row for this token.
    """
    first = torch.tensor(find_first_tokens(model, tokenizer))
    check_tokens(first, model, tokenizer)
    # drawn beforehand, so that a sequence's draws do not depend on how many run at once
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(n_sequences, length - len(first), generator=generator)
    at_once = max(1, _TOKENS_AT_ONCE // length)
    return torch.cat([_sample_batch(model, first, batch) for batch in torch.split(draws, at_once)])


def sample_cached_text(loaded: LoadedModel, *, n_sequences: int, length: int, seed: int) -> Tensor:
    """Return `sample_text` from a cache on disk, so that equal text is sampled only once.

    It is in the folder of `get_cache_folder`.
    """
    facts = {
        **loaded.identity,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "threads": torch.get_num_threads(),
        "n_sequences": n_sequences,
        "length": length,
        "seed": seed,
    }
    files = BlockFiles(get_cache_folder() / "self_text" / compute_digest(facts), _FORMAT, facts)
    if files.has(0):
        return files.load(0)[0][_TOKENS]
    _LOG.info("sampling %d sequences of %d tokens from %s", n_sequences, length, loaded.name)
    tokens = sample_text(
        loaded.model, loaded.tokenizer, n_sequences=n_sequences, length=length, seed=seed
    )
    try:
        files.save(0, {_TOKENS: tokens}, {})
    except OSError as error:
        _LOG.warning("cannot keep sampled text in %s: %s", get_cache_folder(), error)
    return tokens


def find_first_tokens(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens from which a model samples its own text.

    They are the special tokens that its tokenizer puts before a document; if it puts none, its
    BOS, else its EOS token.

    Raises:
        DataError: There is none of these.
    """
    if prefix := find_prefix(tokenizer):
        return prefix
    for owner in (tokenizer, model.config.get_text_config()):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(owner, name, None)
            if token is not None:
                return (int(token[0] if isinstance(token, list) else token),)
    raise DataError("the model has no BOS or EOS token to start its own text: give a text source")


@torch.no_grad()
def _sample_batch(model: PreTrainedModel, first: Tensor, draws: Tensor) -> Tensor:
    """Sample one batch behind the first tokens.

    Args:
        model: A causal model.
        first: Token ids, ``(n_first,)`` int64.
        draws: Uniform numbers in [0, 1), ``(batch, length - n_first)``.
    """
    tokens = torch.cat([first.expand(len(draws), -1), torch.zeros_like(draws).long()], dim=1)
    draws = draws.to(model.device)
    cache = _build_cache(model, tokens.shape[1])
    for place in range(1, tokens.shape[1]):
        unread = tokens[:, place - 1 if cache else 0 : place].to(model.device)
        output = model(input_ids=unread, use_cache=bool(cache), **cache)
        draw = place - len(first)
        if draw >= 0:
            chosen = _choose(output.logits[:, -1], draws[:, draw : draw + 1])
            tokens[:, place] = chosen[:, 0].cpu()
    return tokens


def _build_cache(model: PreTrainedModel, length: int) -> dict[str, StaticCache]:
    """Return an empty cache as a keyword argument; no arguments if the model takes no cache."""
    names = inspect.signature(model.forward).parameters
    if {"cache_params", "cache_position"} <= names.keys():  # state spaces, in older releases
        return {}
    # a model ignores the other name, and would sample each token as if it were the first
    name = "cache_params" if "cache_params" in names else "past_key_values"
    # preallocated: growing the cache step by step takes twice the time in bfloat16
    return {name: StaticCache(config=model.config, max_cache_len=length)}


def _choose(logits: Tensor, draws: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution.

    Args:
        logits: ``(batch, vocabulary)``.
        draws: Uniform numbers in [0, 1), ``(batch, 1)``.

    Returns:
        Token ids, ``(batch, 1)`` int64.
    """
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    return tokens.clamp_(max=logits.shape[-1] - 1)
