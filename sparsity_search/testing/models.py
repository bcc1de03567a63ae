"""Tiny random models and tokenizers in memory, for tests of plugins and of the engine."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from sparsity_search.models.io.identity import identify
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.models.io.saving import save_checkpoint

VOCABULARY = 128
_SPECIAL = ("<unk>", "<bos>", "<eos>")
_WORDS = ("the", "model", "prunes", "many", "small", "weights", "of", "one", "layer", "twice")


def tiny_llama(
    *,
    seed: int = 0,
    layers: int = 3,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> LlamaForCausalLM:
    """Return a random Llama: vocabulary 128, width 32, 4 heads in 2 key-value groups.

    Args:
        seed: Seed of the weights; the global random state does not change.
        layers: Number of blocks.
        tied: Whether the head shares the weights of the embedding.
        dtype: Number type of the weights.
        config: Further fields of `LlamaConfig`, or other values of those above.
    """
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        # with the default, 0.02, such a narrow model almost ignores its input
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**fields, **config}))
    for parameter in model.parameters():  # as in loading: rotary frequencies stay float32
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def tiny_mixtral(*, seed: int = 0, layers: int = 2, **config: Any) -> MixtralForCausalLM:
    """Return a random Mixtral: vocabulary 128, width 32, 8 experts of width 16, 2 per token.

    Args:
        seed: Seed of the weights; the global random state does not change.
        layers: Number of blocks.
        config: Further fields of `MixtralConfig`, or other values of those above.
    """
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,  # as for `tiny_llama`
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MixtralForCausalLM(MixtralConfig(**{**fields, **config}))
    return model.eval().requires_grad_(False)


def tiny_tokenizer(document: str = "$A") -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each printable ASCII character, BOS and EOS.

    Args:
        document: Template of a document, e.g. ``<bos> $A``; by default the text alone.
    """
    characters = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *characters])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token=_SPECIAL[0]))
    backend.decoder = Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    special = [(token, vocabulary[token]) for token in _SPECIAL]
    backend.post_processor = TemplateProcessing(single=document, special_tokens=special)
    unknown, begin, end = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def tiny_loaded(**options: Any) -> LoadedModel:
    """Return a `tiny_llama` with its tokenizer, as `load_predictor` returns a model."""
    model, tokenizer = tiny_llama(**options), tiny_tokenizer()
    return LoadedModel(model, tokenizer, "tiny-llama", None, identify(model, tokenizer))


def save_tiny_model(folder: Path, **options: Any) -> Path:
    """Write a `tiny_llama` and its tokenizer to a folder for `load_predictor`, and return it."""
    save_checkpoint(tiny_llama(**options), tiny_tokenizer(), folder)
    return folder


def tiny_text(n_words: int = 2000, *, seed: int = 0) -> str:
    """Return sentences of random plain words, the same for the same seed."""
    source = random.Random(seed)
    return " ".join(source.choice(_WORDS) for _ in range(n_words)) + "\n"
