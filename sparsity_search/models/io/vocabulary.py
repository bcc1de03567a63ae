"""Checks that a tokenizer's ids are rows of the model's embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError


def check_vocabulary(model: PreTrainedModel, tokenizer: Any) -> None:
    """Check that the embedding has a row for every ordinary token of a tokenizer.

    A tokenizer with more ordinary tokens is another model's, so its smaller ids are wrong too.
    Added tokens may have no row: many releases add some that no text holds, such as padding or
    the image token of a family.

    Raises:
        ModelError: A token has no row.
    """
    rows = _count_rows(model)
    ordinary = set(tokenizer.get_vocab().values()) - _find_added(tokenizer)
    if (last := max(ordinary, default=0)) >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {last}, but the model's embedding only {rows} rows: "
            "give the tokenizer that the model was trained with, or resize the embedding"
        )


def check_tokens(tokens: Tensor, model: PreTrainedModel, tokenizer: Any) -> None:
    """Check that the embedding has a row for each of some tokens, which may be added ones.

    Args:
        tokens: Token ids of any shape, at least one.
        model: The model.
        tokenizer: Its tokenizer.

    Raises:
        ModelError: One has none; the message names it.
    """
    rows = _count_rows(model)
    if (last := int(tokens.max())) >= rows:
        token = tokenizer.convert_ids_to_tokens(last)
        raise ModelError(
            f"the text has the token {token!r} ({last}), but the model's embedding only {rows} "
            "rows: remove it from the text, or resize the embedding"
        )


def _find_added(tokenizer: Any) -> set[int]:
    """Return the ids of added tokens."""
    try:
        return set(tokenizer.added_tokens_decoder)
    except NotImplementedError:  # the tokenizers of mistral-common
        return set(tokenizer.all_special_ids)


def _count_rows(model: PreTrainedModel) -> int:
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])
