from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sparsity_search.data import sources
from sparsity_search.data.sources import Documents, parse_source
from sparsity_search.errors import DataError

TEXTS = ["one fish", "two fish", "red fish\nblue fish"]


def write(folder: Path, suffix: str, texts: list[Any]) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    elif suffix == ".txt":
        path.write_text("".join(texts), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def refusal(source: object) -> str:
    with pytest.raises(DataError) as caught:
        list(Documents(str(source)))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file_of_documents_gives_them_in_order(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, [*TEXTS[:1], "", " \n", *TEXTS[1:]])
    assert list(Documents(f"file:{path}")) == TEXTS
    assert list(Documents(str(path))) == TEXTS


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", ["first\n\n", "second é\n"])
    assert list(Documents(f"file:{path}")) == ["first\n\nsecond é\n"]


def test_documents_are_read_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", TEXTS)
    path.write_text(path.read_text() + "not json\n")
    stream = iter(Documents(str(path)))
    assert [next(stream) for _ in TEXTS] == TEXTS
    with pytest.raises(DataError, match="line 4 is not JSON"):
        next(stream)


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    empty = ["", " ", "null", "{}", '{"text": null}', '{"text": ""}', '{"text": " \\n"}']
    path.write_text("\n".join(['{"text": "fine"}', *empty, '{"text": "too"}']) + "\n")
    documents = Documents(str(path))
    assert list(documents) == ["fine", "too"]
    assert documents.skipped == len(empty)
    documents = Documents(str(write(tmp_path, ".parquet", ["a", None, "", "b"])))
    assert list(documents) == ["a", "b"]
    assert documents.skipped == 2


@pytest.mark.parametrize("line", ['{"text": 3}', '{"text": ["a"]}', '"text"', "[]", "0"])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    assert "data.jsonl, line 3" in refusal(path)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, ["one \ufefffish"])
    if suffix != ".parquet":  # two files with marks, joined
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        path.write_bytes(path.read_bytes() + path.read_bytes())
    text = "".join(Documents(str(path)))
    assert text.replace("one fish", "") == ""
    assert text


def test_a_parquet_file_needs_a_column_of_strings(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": TEXTS}), path)
    assert "no column 'text'" in refusal(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    assert "row 1" in refusal(path)
    path.write_bytes(b"PAR1 and nothing more")
    assert "not a readable parquet file" in refusal(path)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_source_without_text_is_refused(tmp_path: Path, suffix: str) -> None:
    assert "holds no text" in refusal(write(tmp_path, suffix, ["", " \n"]))


def test_an_endless_source_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: ({"content": "a"} for _ in itertools.count())
    )
    monkeypatch.setattr(sources, "_check_reachable", lambda name: None)
    assert "no text (rows read: 1000)" in refusal("hub:org/name")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(path)


def test_bad_names_say_what_to_give(tmp_path: Path) -> None:
    assert "check the path" in refusal(f"file:{tmp_path}/absent.txt")
    assert "is a folder" in refusal(f"file:{tmp_path}")
    (tmp_path / "data.csv").touch()
    assert ".txt, .jsonl" in refusal(f"file:{tmp_path}/data.csv")
    for source in (
        "http://x",
        "wikitext",
        "",
        "file:",
        "hub:",
        "hub::a",
        "hub:a:b:c:d",
        "self:x",
        "sample:x",
    ):
        assert "give file:PATH, hub:NAME" in refusal(source)
    assert "did you mean file:a.txt?" in refusal("fiel:a.txt")
    assert "did you mean self?" in refusal("slef")
    assert "did you mean sample?" in refusal("smaple")
    assert "there is no text file absent.txt" in refusal("absent.txt")
    assert "no documents" in refusal("self")


def test_equal_files_parse_to_equal_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, ".txt", TEXTS)
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names = [f"file:{path}", str(path), "file:data.txt", f"{tmp_path}/./data.txt", str(link)]
    assert len({parse_source(name) for name in names}) == 1
    assert (
        parse_source("hub:a/b") == parse_source("hub:a/b::train") != parse_source("hub:a/b::test")
    )


def test_identity_holds_facts_and_no_folder(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", TEXTS)
    facts = parse_source(f"file:{path}").describe()
    expected = hashlib.sha256("".join(TEXTS).encode()).hexdigest()[:16]
    assert facts == {"source": "file:data.txt", "sha256": expected}
    assert str(tmp_path) not in json.dumps(facts)
    assert parse_source("hub:wikitext:raw").describe() == {"source": "hub:wikitext:raw:train"}
    assert parse_source("self").describe() == {"source": "self"}


def test_the_hub_without_a_network_fails_at_once() -> None:
    started = time.monotonic()
    assert "save its text to a file" in refusal("hub:nobody/nothing")
    assert time.monotonic() - started < 5


def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(*names: Any, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        asked.append((*names, split, streaming))
        yield {"text": "first"}
        raise OSError("the connection broke")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_check_reachable", lambda name: None)
    stream = iter(Documents("hub:org/name:config:test"))
    assert next(stream) == "first"
    with pytest.raises(DataError, match="the connection broke"):
        next(stream)
    assert next(iter(Documents("hub:org/name"))) == "first"
    assert asked == [("org/name", "config", "test", True), ("org/name", None, "train", True)]
