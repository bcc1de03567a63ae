from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request, compute_digest, draw_texts
from sparsity_search.data.sources import Documents, parse_source
from sparsity_search.engine.session import request_search_text

SAMPLE = files("sparsity_search.data") / "sample"


class WordTokenizer:
    """A token for each word and mark: fewer than any real tokenizer gives."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        tokens = re.findall(r"\w+|[^\w\s]", text)
        return {"input_ids": [self.vocabulary.setdefault(t, len(self.vocabulary)) for t in tokens]}


@pytest.fixture
def loaded() -> SimpleNamespace:
    embedding = torch.nn.Embedding(50_000, 1)
    model = SimpleNamespace(get_input_embeddings=lambda: embedding)
    return SimpleNamespace(model=model, tokenizer=WordTokenizer())


def read_lines() -> list[dict[str, str]]:
    lines = (SAMPLE / "passages.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_source_is_the_file_of_the_package() -> None:
    lines = read_lines()
    assert list(Documents("sample")) == [line["text"] for line in lines]
    digest = hashlib.sha256((SAMPLE / "passages.jsonl").read_bytes()).hexdigest()[:16]
    assert parse_source("sample").describe() == {"source": "sample", "sha256": digest}


def test_passages_are_clean_and_distinct() -> None:
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(read_lines()):
        text = line["text"]
        assert 500 < len(text) < 3500
        assert not re.search(
            r"[\[\]{}<>|_*#@\\~^=\ufffd\n\t]|  |\s[,.;]|[a-z][.!?][A-Z]|http", text
        )
        assert re.search(r"[.!?]\W*$", text)
        words = re.findall(r"\w+", text.lower())
        for start in range(len(words) - 9):
            assert seen.setdefault(tuple(words[start : start + 10]), number) == number


def test_the_note_counts_the_passages_of_each_origin() -> None:
    note = (SAMPLE / "README.md").read_text("utf-8")
    origins = Counter(line["source"].split(",")[0] for line in read_lines())
    rows = re.findall(r"\| (\d+) \| public domain", note)
    assert sorted(map(int, rows)) == sorted(origins.values())
    assert f"{sum(origins.values())} passages" in note


@pytest.mark.filterwarnings("ignore:the text .sample")
def test_the_default_draws_fit_twice_and_are_disjoint(loaded: SimpleNamespace) -> None:
    requests = request_search_text(load_config(None, {"model.name": "x"}).data)
    assert {request.source for request in requests} == {"sample"}
    rest = Request("rest", "sample", None, 1024)
    drawn = draw_texts([*requests, rest], loaded, 0)
    default = sum(drawn[request.purpose].tokens.numel() for request in requests)
    assert default == 16 * 1024 + 8 * 512 + 16 * 1024
    assert len(drawn["rest"].tokens) * 1024 > 0.8 * default
    whole = [t for text in Documents("sample") for t in loaded.tokenizer(text)["input_ids"]]
    pieces = torch.cat([text.tokens.flatten() for text in drawn.values()])
    assert pieces.tolist() == whole[: len(pieces)]
    again = draw_texts(requests, loaded, 1)
    for purpose, text in again.items():
        assert text.describe()["digest"] == compute_digest(drawn[purpose].tokens)
