"""Token sequences for each purpose, drawn so that no two purposes see the same text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsity_search.data.self_text import cached_sample
from sparsity_search.data.sources import Source, documents, parse
from sparsity_search.errors import DataError
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.utils.random import derive_seed

#: A document is cut to this many characters for each token needed before it is tokenised.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Request:
    """Sequences wanted for one purpose.

    Attributes:
        purpose: What they are for, e.g. ``calibration``.
        source: The text source.
        n_sequences: How many; None or 0 for as many as there are, at least one.
        length: Tokens in each.
    """

    purpose: str
    source: str
    n_sequences: int | None
    length: int

    @property
    def n_tokens(self) -> int:
        """Tokens that are needed at least."""
        return (self.n_sequences or 1) * self.length


def draw(requests: Sequence[Request], loaded: LoadedModel, seed: int) -> dict[str, Tensor]:
    """Draw the sequences of all purposes.

    Purposes with the same source get consecutive pieces of its token stream, in the order of
    ``requests``; a purpose without a number gets all that the numbered ones leave.

    Args:
        requests: One for each purpose.
        loaded: Its tokenizer reads the text; the source ``self`` is sampled from its model.
        seed: Of the text that the model samples; other text is taken from the start.

    Returns:
        For each purpose, token ids of shape (n_sequences, length), int64.

    Raises:
        DataError: A source is missing or too short.
    """
    groups: dict[Source, list[Request]] = {}
    for request in requests:
        groups.setdefault(parse(request.source), []).append(request)
    drawn: dict[str, Tensor] = {}
    for source, group in groups.items():
        if source.kind == "self":
            drawn |= {request.purpose: _own_text(request, loaded, seed) for request in group}
        else:
            drawn |= _pieces(group, source, loaded.tokenizer)
    return {request.purpose: drawn[request.purpose] for request in requests}


def digest(tokens: Tensor) -> str:
    """Return 16 hexadecimal digits that identify tokens by their shape and values."""
    whole = tokens.to("cpu", torch.int64).contiguous()
    total = hashlib.sha256(str(tuple(whole.shape)).encode())
    total.update(whole.numpy().tobytes())
    return total.hexdigest()[:16]


def _own_text(request: Request, loaded: LoadedModel, seed: int) -> Tensor:
    if not request.n_sequences:
        raise DataError(f"the source self has no end: say how many sequences {request.purpose} is")
    return cached_sample(
        loaded,
        n_sequences=request.n_sequences,
        length=request.length,
        seed=derive_seed(seed, request.purpose),
    )


def _pieces(group: Sequence[Request], source: Source, tokenizer: Any) -> dict[str, Tensor]:
    fixed = sum(request.n_tokens for request in group)
    open_ended = any(not request.n_sequences for request in group)
    stream = _token_stream(group[0].source, tokenizer, None if open_ended else fixed)
    _refuse_short(len(stream), group, source)
    spare = len(stream) - fixed
    drawn, start = {}, 0
    for request in group:
        count = request.n_sequences
        if not count:
            count = 1 + spare // request.length
            spare %= request.length
        stop = start + count * request.length
        drawn[request.purpose] = stream[start:stop].reshape(count, request.length).clone()
        start = stop
    return drawn


def _token_stream(source: str, tokenizer: Any, limit: int | None) -> Tensor:
    """Return the first ``limit`` tokens of a source, or as many as there are."""
    tokens: list[int] = []
    for ids in _joined(source, tokenizer, limit):
        tokens += ids
        if limit is not None and len(tokens) >= limit:
            break
    return torch.tensor(tokens[:limit], dtype=torch.int64)


def _joined(source: str, tokenizer: Any, limit: int | None) -> Iterator[list[int]]:
    between = _ids(tokenizer, "\n\n")
    for number, text in enumerate(documents(source)):
        if number:
            yield between
        yield _document_ids(tokenizer, text, limit)


def _document_ids(tokenizer: Any, text: str, limit: int | None) -> list[int]:
    """Tokenise a document, or only so much of a long one that it has ``limit`` tokens."""
    if limit is not None and len(text) > limit * _CHARACTERS_PER_TOKEN:
        ids = _ids(tokenizer, text[: limit * _CHARACTERS_PER_TOKEN])
        # a cut changes the last tokens only: with twice as many, those used are the same
        if len(ids) >= 2 * limit:
            return ids
    return _ids(tokenizer, text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # verbose=False: a document longer than the model's context is meant
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _refuse_short(available: int, group: Sequence[Request], source: Source) -> None:
    longest = max(request.length for request in group)
    if available < longest:
        raise DataError(
            f"{source.plain} has {available} tokens, fewer than one sequence of {longest}: "
            "give a longer text or a smaller length"
        )
    needed = sum(request.n_tokens for request in group)
    if available < needed:
        parts = ", ".join(f"{r.purpose} {r.n_sequences or 1} x {r.length}" for r in group)
        raise DataError(
            f"{source.plain} has {available} tokens, but {needed} are needed ({parts}): "
            "give a longer text, fewer sequences or a smaller length"
        )
