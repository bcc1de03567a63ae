"""Token sequences for each purpose, drawn so that no two purposes share text."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsity_search.data.self_text import find_first_tokens, sample_cached_text
from sparsity_search.data.sources import Documents, Source, parse_source
from sparsity_search.data.special_tokens import SpecialTokens, find_prefix, name_tokens
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
        length: Tokens per sequence, including special ones.
        special_tokens: Whether each sequence starts with the special tokens that the tokenizer
            puts before a document. The source ``self`` does not depend on it.
    """

    purpose: str
    source: str
    n_sequences: int | None
    length: int
    special_tokens: SpecialTokens = "auto"


@dataclass(frozen=True)
class _Piece:
    """A request with the special tokens that each of its sequences starts with."""

    request: Request
    prefix: tuple[int, ...]

    @property
    def width(self) -> int:
        """Tokens of text in each sequence."""
        return self.request.length - len(self.prefix)

    @property
    def n_tokens(self) -> int:
        """Minimum number of tokens of text."""
        return (self.request.n_sequences or 1) * self.width

    def build(self, text: Tensor) -> Tensor:
        """Return the sequences, ``(n, length)``, of a stream of text, ``(n * width,)``."""
        rows = text.reshape(-1, self.width)
        return torch.cat([torch.tensor(self.prefix).long().expand(len(rows), -1), rows], dim=1)


@dataclass(frozen=True)
class DrawnText:
    """The sequences of one purpose, and how they were read.

    Attributes:
        tokens: Token ids, ``(n_sequences, length)`` int64.
        source: The source.
        special_tokens: Names of the special tokens that each sequence starts with, or ``none``.
        skipped: Rows without text that were skipped in the source, up to the last one needed.
    """

    tokens: Tensor
    source: Source
    special_tokens: str
    skipped: int = 0

    def describe(self) -> dict[str, Any]:
        """Return source, size and digest, for artefacts."""
        return {
            **self.source.describe(),
            **({"skipped": self.skipped} if self.skipped else {}),
            "sequences": self.tokens.shape[0],
            "length": self.tokens.shape[1],
            "special_tokens": self.special_tokens,
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
            drawn |= _sample_own_text(group, source, loaded, seed)
        else:
            drawn |= _cut_pieces(group, source, loaded)
    return {request.purpose: drawn[request.purpose] for request in requests}


def compute_digest(tokens: Tensor) -> str:
    """Return 16 hexadecimal digits that identify tokens by shape and values."""
    whole = tokens.to("cpu", torch.int64).contiguous()
    total = hashlib.sha256(str(tuple(whole.shape)).encode())
    total.update(whole.numpy().tobytes())
    return total.hexdigest()[:16]


def _sample_own_text(
    group: Sequence[Request], source: Source, loaded: LoadedModel, seed: int
) -> dict[str, DrawnText]:
    """Return text that the model samples, from the first tokens of a document on."""
    first = name_tokens(find_first_tokens(loaded.model, loaded.tokenizer), loaded.tokenizer)
    drawn = {}
    for request in group:
        if not request.n_sequences:
            raise DataError(
                f"the source self is endless: give the number of sequences for {request.purpose}"
            )
        tokens = sample_cached_text(
            loaded,
            n_sequences=request.n_sequences,
            length=request.length,
            seed=derive_seed(seed, request.purpose),
        )
        drawn[request.purpose] = DrawnText(tokens, source, first)
    return drawn


def _cut_pieces(
    group: Sequence[Request], source: Source, loaded: LoadedModel
) -> dict[str, DrawnText]:
    """Return consecutive pieces of the source's text."""
    tokenizer, pieces = loaded.tokenizer, _find_pieces(group, loaded.tokenizer)
    fixed = sum(piece.n_tokens for piece in pieces)
    open_ended = any(not request.n_sequences for request in group)
    documents = Documents(group[0].source)
    stream = _read_tokens(documents, tokenizer, None if open_ended else fixed)
    _check_length(len(stream), pieces, source)
    check_tokens(stream, loaded.model, tokenizer)
    if documents.skipped:
        told = f"{source.plain}: {documents.skipped} rows without text are skipped"
        warnings.warn(told, SkippedTextWarning, stacklevel=2)
    spare = len(stream) - fixed
    drawn, start = {}, 0
    for piece in pieces:
        n_tokens = piece.n_tokens
        if not piece.request.n_sequences:
            n_tokens += spare // piece.width * piece.width
            spare %= piece.width
        tokens = piece.build(stream[start : start + n_tokens])
        names = name_tokens(piece.prefix, tokenizer)
        drawn[piece.request.purpose] = DrawnText(tokens, source, names, documents.skipped)
        start += n_tokens
    return drawn


def _find_pieces(group: Sequence[Request], tokenizer: Any) -> list[_Piece]:
    """Return the pieces of one source.

    Raises:
        DataError: Sequences are too short to hold any text.
    """
    prefix = find_prefix(tokenizer)
    pieces = [_Piece(r, prefix if r.special_tokens == "auto" else ()) for r in group]
    for piece in pieces:
        if piece.width < 1:
            raise DataError(
                f"sequences of {piece.request.length} tokens for {piece.request.purpose} have no "
                f"room for text behind special tokens ({name_tokens(piece.prefix, tokenizer)}): "
                "raise their length"
            )
    return pieces


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


def _check_length(available: int, pieces: Sequence[_Piece], source: Source) -> None:
    longest = max(piece.width for piece in pieces)
    if available < longest:
        raise DataError(
            f"{source.plain} has {available} tokens, fewer than one sequence of {longest}: "
            "give a longer text or a smaller length"
        )
    needed = sum(piece.n_tokens for piece in pieces)
    if available < needed:
        parts = ", ".join(
            f"{piece.request.purpose} {piece.request.n_sequences or 1} x {piece.width}"
            for piece in pieces
        )
        raise DataError(
            f"{source.plain} has {available} tokens, but {needed} are needed ({parts}): "
            "give a longer text, fewer sequences or a smaller length"
        )
