"""Token sequences for each purpose, drawn so that no two purposes share text."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsity_search.data.self_text import sample_cached_text
from sparsity_search.data.sources import Documents, Source, parse_source
from sparsity_search.errors import DataError, SkippedTextWarning
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.models.io.vocabulary import check_tokens
from sparsity_search.utils.random import derive_seed

#: Characters of a document that are tokenised for each token needed.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Request:
    """Request for the sequences of one purpose.

    Attributes:
        purpose: Use of the sequences, e.g. ``calibration``.
        source: The text source.
        n_sequences: Number of sequences; None or 0 for all that the source gives, at least one.
        length: Tokens per sequence.
    """

    purpose: str
    source: str
    n_sequences: int | None
    length: int

    @property
    def n_tokens(self) -> int:
        """Minimum number of tokens."""
        return (self.n_sequences or 1) * self.length


@dataclass(frozen=True)
class DrawnText:
    """The sequences of one purpose, and how they were read.

    Attributes:
        tokens: Token ids, ``(n_sequences, length)`` int64.
        source: The source.
        skipped: Rows without text that were skipped in the source, up to the last one needed.
    """

    tokens: Tensor
    source: Source
    skipped: int = 0

    def describe(self) -> dict[str, Any]:
        """Return source, size and digest, for artefacts."""
        return {
            **self.source.describe(),
            **({"skipped": self.skipped} if self.skipped else {}),
            "sequences": self.tokens.shape[0],
            "length": self.tokens.shape[1],
            "digest": compute_digest(self.tokens),
        }


def draw(requests: Sequence[Request], loaded: LoadedModel, seed: int) -> dict[str, Tensor]:
    """Return the token ids of `draw_texts` by purpose, ``(n_sequences, length)`` int64 each."""
    texts = draw_texts(requests, loaded, seed)
    return {purpose: text.tokens for purpose, text in texts.items()}


def draw_texts(
    requests: Sequence[Request], loaded: LoadedModel, seed: int
) -> dict[str, DrawnText]:
    """Draw the sequences of all purposes.

    Purposes with the same source get consecutive pieces of its token stream, in the order of
    ``requests``. A purpose without a number of sequences gets the tokens that remain.

    Args:
        requests: One for each purpose.
        loaded: Model whose tokenizer encodes the text; it also samples the source ``self``.
        seed: Seed of the text that the model samples; other text is read from its start.

    Returns:
        The text of each purpose, in the order of ``requests``.

    Raises:
        DataError: A source is missing or too short.
        ModelError: The text has a token for which the embedding has no row.
    """
    groups: dict[Source, list[Request]] = {}
    for request in requests:
        groups.setdefault(parse_source(request.source), []).append(request)
    drawn: dict[str, DrawnText] = {}
    for source, group in groups.items():
        if source.kind == "self":
            for request in group:
                drawn[request.purpose] = DrawnText(_sample_own_text(request, loaded, seed), source)
        else:
            drawn |= _cut_pieces(group, source, loaded)
    return {request.purpose: drawn[request.purpose] for request in requests}


def compute_digest(tokens: Tensor) -> str:
    """Return 16 hexadecimal digits that identify tokens by shape and values."""
    whole = tokens.to("cpu", torch.int64).contiguous()
    total = hashlib.sha256(str(tuple(whole.shape)).encode())
    total.update(whole.numpy().tobytes())
    return total.hexdigest()[:16]


def _sample_own_text(request: Request, loaded: LoadedModel, seed: int) -> Tensor:
    if not request.n_sequences:
        raise DataError(
            f"the source self is endless: give the number of sequences for {request.purpose}"
        )
    return sample_cached_text(
        loaded,
        n_sequences=request.n_sequences,
        length=request.length,
        seed=derive_seed(seed, request.purpose),
    )


def _cut_pieces(
    group: Sequence[Request], source: Source, loaded: LoadedModel
) -> dict[str, DrawnText]:
    fixed = sum(request.n_tokens for request in group)
    open_ended = any(not request.n_sequences for request in group)
    documents = Documents(group[0].source)
    stream = _read_tokens(documents, loaded.tokenizer, None if open_ended else fixed)
    _check_length(len(stream), group, source)
    check_tokens(stream, loaded.model, loaded.tokenizer)
    if documents.skipped:
        told = f"{source.plain}: {documents.skipped} rows without text are skipped"
        warnings.warn(told, SkippedTextWarning, stacklevel=2)
    spare = len(stream) - fixed
    drawn, start = {}, 0
    for request in group:
        count = request.n_sequences
        if not count:
            count = 1 + spare // request.length
            spare %= request.length
        stop = start + count * request.length
        tokens = stream[start:stop].reshape(count, request.length).clone()
        drawn[request.purpose] = DrawnText(tokens, source, documents.skipped)
        start = stop
    return drawn


def _read_tokens(documents: Iterable[str], tokenizer: Any, limit: int | None) -> Tensor:
    """Return the first ``limit`` tokens of a source, or fewer if it has no more."""
    tokens: list[int] = []
    for ids in _tokenise_documents(documents, tokenizer, limit):
        tokens += ids
        if limit is not None and len(tokens) >= limit:
            break
    return torch.tensor(tokens[:limit], dtype=torch.int64)


def _tokenise_documents(
    documents: Iterable[str], tokenizer: Any, limit: int | None
) -> Iterator[list[int]]:
    separator = _tokenise(tokenizer, "\n\n")
    for number, text in enumerate(documents):
        if number:
            yield separator
        yield _tokenise_document(tokenizer, text, limit)


def _tokenise_document(tokenizer: Any, text: str, limit: int | None) -> list[int]:
    """Tokenise a document; of a long one, only enough for ``limit`` tokens."""
    if limit is not None and len(text) > limit * _CHARACTERS_PER_TOKEN:
        ids = _tokenise(tokenizer, text[: limit * _CHARACTERS_PER_TOKEN])
        # a cut changes only the last tokens: the first half is safe
        if len(ids) >= 2 * limit:
            return ids
    return _tokenise(tokenizer, text)


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    # verbose=False: documents may be longer than the model's context
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _check_length(available: int, group: Sequence[Request], source: Source) -> None:
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
