"""Special tokens at the start of a sequence, as a tokenizer adds them to a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

#: ``auto``: the tokens that the tokenizer puts before a document; ``none``: none.
SpecialTokens = Literal["auto", "none"]

#: Any text does: what stands before its tokens is the same for all.
_SAMPLE = "a"


def find_prefix(tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before a document, mostly BOS or none.

    They are found by tokenising: many tokenizers have a BOS that they never add, such as Qwen's
    and SmolLM2's, and some add others (GLM). What is added behind a document is left out, because
    sequences are cut from documents.
    """
    text: list[int] = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(_SAMPLE)["input_ids"]
    ends = range(len(whole) - len(text) + 1)
    start = next((i for i in ends if whole[i : i + len(text)] == text), 0)
    return tuple(whole[:start])


def name_tokens(tokens: Sequence[int], tokenizer: Any) -> str:
    """Return special tokens for people, e.g. ``<bos>``; ``none`` if there are none."""
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(list(tokens)))) if tokens else "none"
