from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.data import sources
from sparsity_search.data.sequences import Request, compute_digest, draw, draw_texts
from sparsity_search.data.sources import Source
from sparsity_search.errors import DataError, SkippedTextWarning
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.testing.models import tiny_llama, tiny_loaded, tiny_text


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(tiny_text(200))
    return path


def ids(loaded: LoadedModel, text: str) -> list[int]:
    found: list[int] = loaded.tokenizer(text, add_special_tokens=False).input_ids
    return found


def test_one_source_gives_consecutive_pieces_in_order(loaded: LoadedModel, text: Path) -> None:
    requests = [Request("b", f"file:{text}", 3, 20), Request("a", f"file:{text}", 2, 30)]
    drawn = draw(requests, loaded, seed=0)
    assert list(drawn) == ["b", "a"]
    assert drawn["b"].shape == (3, 20)
    assert drawn["a"].shape == (2, 30)
    assert {tokens.dtype for tokens in drawn.values()} == {torch.int64}
    stream = torch.cat([drawn["b"].flatten(), drawn["a"].flatten()]).tolist()
    assert stream == ids(loaded, text.read_text())[:120]


def test_two_names_of_one_file_are_one_source(loaded: LoadedModel, text: Path) -> None:
    link = text.parent / "link.txt"
    link.symlink_to(text)
    names = [f"file:{text}", str(text), f"file:{link}"]
    requests = [Request(str(i), name, 1, 40) for i, name in enumerate(names)]
    stream = torch.cat([piece[0] for piece in draw(requests, loaded, 0).values()]).tolist()
    assert stream == ids(loaded, text.read_text())[:120]


def test_other_sources_start_from_their_own_beginning(loaded: LoadedModel, text: Path) -> None:
    other = text.parent / "b.txt"
    other.write_text("0123456789" * 4)
    requests = [Request("a", str(text), 1, 8), Request("b", str(other), 1, 10)]
    requests.append(Request("c", str(text), 1, 8))
    drawn = draw(requests, loaded, 0)
    assert drawn["b"][0].tolist() == ids(loaded, "0123456789")
    assert torch.cat([drawn["a"][0], drawn["c"][0]]).tolist() == ids(loaded, text.read_text()[:16])


def test_documents_are_packed_with_an_empty_line_between(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("ab", "cd", "ef")))
    drawn = draw([Request("a", str(path), 1, 10)], loaded, 0)
    assert drawn["a"][0].tolist() == ids(loaded, "ab\n\ncd\n\nef")


def test_rows_without_text_are_told(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "abcd"}\n{"text": null}\n{"text": "efgh"}\n{}\n')
    requests = [Request("first", str(path), 1, 4), Request("second", str(path), 1, 6)]
    with pytest.warns(SkippedTextWarning, match=r"file:a\.jsonl: 2 rows without text are skipped"):
        drawn = draw_texts(requests, loaded, 0)
    assert drawn["second"].tokens[0].tolist() == ids(loaded, "\n\nefgh")
    assert [text.describe()["skipped"] for text in drawn.values()] == [2, 2]


def test_no_more_documents_are_read_than_needed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(source: Source) -> Iterator[str]:
        for number in range(10):
            assert number < 4
            yield "abcdefgh"

    monkeypatch.setattr(sources, "_read_rows", endless)
    drawn = draw([Request("a", "hub:x", 2, 10), Request("b", "hub:x::train", 1, 18)], loaded, 0)
    assert drawn["b"].shape == (1, 18)


def test_a_long_document_is_cut_before_it_is_read(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(tiny_text(50_000))
    read: list[int] = []

    class Counting:
        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            read.append(len(text))
            return dict(loaded.tokenizer(text, **options))

    counting = LoadedModel(loaded.model, Counting(), "x", None, {})
    drawn = draw([Request("a", str(path), 2, 10)], counting, 0)
    assert drawn["a"].flatten().tolist() == ids(loaded, path.read_text()[:20])
    assert max(read) < 1000


def test_a_cut_with_too_few_tokens_is_not_used(tmp_path: Path) -> None:
    def words(text: str, **options: bool) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    path = tmp_path / "a.txt"
    path.write_text(" ".join(["x" * 40, "y" * 50, "z" * 60, "x" * 70]))
    loaded = LoadedModel(tiny_llama(), words, "x", None, {})
    assert draw([Request("a", str(path), 1, 3)], loaded, 0)["a"].tolist() == [[40, 50, 60]]


def test_no_number_means_all_that_is_left(loaded: LoadedModel, text: Path) -> None:
    available = len(ids(loaded, text.read_text()))
    for nothing in (None, 0):
        requests = [Request("all", str(text), nothing, 64), Request("few", str(text), 2, 50)]
        drawn = draw(requests, loaded, 0)
        assert len(drawn["all"]) == (available - 100) // 64
        stream = torch.cat([drawn["all"].flatten(), drawn["few"].flatten()]).tolist()
        assert stream == ids(loaded, text.read_text())[: len(stream)]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=4),
    st.integers(1, 400),
)
def test_pieces_never_overlap(shapes: list[tuple[int, int]], available: int) -> None:
    loaded = _numbers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_read_rows", lambda source: iter(["x" * available]))
        requests = [Request(str(i), "hub:x", n, size) for i, (n, size) in enumerate(shapes)]
        needed = sum((n or 1) * size for n, size in shapes)
        if available < needed:
            with pytest.raises(DataError):
                draw(requests, loaded, 0)
            return
        drawn = draw(requests, loaded, 0)
    stream = [token for tokens in drawn.values() for token in tokens.flatten().tolist()]
    assert stream == list(range(len(stream)))
    assert len(stream) <= available
    for (n, size), tokens in zip(shapes, drawn.values(), strict=True):
        assert tokens.shape == (n or len(tokens), size)
        assert len(tokens) >= 1


@cache
def _numbers() -> LoadedModel:
    def tokenizer(text: str, **options: bool) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text)))}

    return LoadedModel(tiny_llama(vocab_size=400), tokenizer, "x", None, {})


def test_too_short_a_source_says_what_it_has_and_what_is_needed(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 50)
    with pytest.raises(DataError) as caught:
        draw(
            [Request("calibration", str(path), 3, 10), Request("search", str(path), 3, 10)],
            loaded,
            0,
        )
    message = str(caught.value)
    for words in ("a.txt has 50 tokens", "60 are needed", "calibration 3 x 10", "search 3 x 10"):
        assert words in message
    assert "longer text" in message
    assert str(tmp_path) not in message


def test_less_than_one_sequence_has_its_own_line(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 50)
    for count in (1, None):
        with pytest.raises(DataError, match="has 50 tokens, fewer than one sequence of 64"):
            draw([Request("search", str(path), count, 64)], loaded, 0)


def test_a_long_document_raises_no_warning(
    text: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = tiny_loaded()  # a tokenizer warns once only
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # a command may have silenced it
    draw([Request("a", str(text), None, 64)], fresh, 0)
    assert not caplog.text
    assert len(ids(fresh, text.read_text())) > fresh.tokenizer.model_max_length
    assert "longer than" in caplog.text


def test_own_text_differs_by_purpose_and_seed(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(tmp_path))
    requests = [Request("a", "self", 2, 16), Request("b", "self", 2, 16)]
    drawn = draw(requests, loaded, 0)
    assert not torch.equal(drawn["a"], drawn["b"])
    # a purpose's text does not depend on the others
    assert torch.equal(draw(requests[1:], loaded, 0)["b"], drawn["b"])
    assert not torch.equal(draw(requests[1:], loaded, 1)["b"], drawn["b"])
    with pytest.raises(DataError, match="number of sequences"):
        draw([Request("a", "self", None, 16)], loaded, 0)


def test_the_digest_sees_values_and_shape() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    assert (
        compute_digest(tokens)
        == compute_digest(tokens.int())
        == compute_digest(tokens.T.contiguous().T)
    )
    assert (
        len(
            {
                compute_digest(tokens),
                compute_digest(tokens + 1),
                compute_digest(tokens.reshape(4, 3)),
            }
        )
        == 3
    )
    assert len(compute_digest(tokens)) == 16
