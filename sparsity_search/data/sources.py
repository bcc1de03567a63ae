"""Text sources: `file:PATH`, `hub:NAME[:CONFIG[:SPLIT]]`, or `self` for the model's own text."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.errors import DataError
from sparsity_search.utils.extras import require

_SCHEMES = "file:PATH, hub:NAME[:CONFIG[:SPLIT]] or self"
_PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Source:
    """A parsed text source; equal sources hold the same text.

    Attributes:
        kind: ``file``, ``hub`` or ``self``.
        value: Resolved path, or ``NAME:CONFIG:SPLIT``, or empty.
    """

    kind: str
    value: str = ""

    @property
    def plain(self) -> str:
        """Name of the source in records: a file without its folder."""
        if self.kind == "file":
            return f"file:{Path(self.value).name}"
        return f"hub:{self.value}" if self.kind == "hub" else self.kind


def parse_source(source: str) -> Source:
    """Parse a text source.

    Raises:
        DataError: The kind of source is unknown, or the file does not exist.
        MissingExtraError: The extra ``data`` is needed and not installed.
    """
    if source == "self":
        return Source("self")
    kind, _, value = source.partition(":")
    if kind == "hub" and value:
        return Source("hub", _complete_hub_name(source, value))
    if kind == "file" and value:
        return Source("file", str(_resolve_file(Path(value))))
    if Path(source).expanduser().is_file():
        return Source("file", str(_resolve_file(Path(source))))
    raise DataError(f"unknown text source {source!r}: give {_SCHEMES}")


def read_documents(source: str) -> Iterator[str]:
    """Yield the documents of a source in order, without loading more than needed.

    Args:
        source: ``file:PATH``, a bare path, or ``hub:NAME[:CONFIG[:SPLIT]]`` (split ``train`` by
            default). A .txt file is one document; .jsonl and .json files with one object per
            line, and .parquet files, hold documents under ``text``. Empty documents are skipped.

    Raises:
        DataError: The source is missing or unreadable, or has no ``text``, or only empty ones.
    """
    parsed = parse_source(source)
    if parsed.kind == "self":
        raise DataError("the source self has no documents: the model samples its text")
    rows = _read_hub(parsed.value) if parsed.kind == "hub" else _read_file(Path(parsed.value))
    empty = True
    for text in rows:
        if text.strip():
            empty = False
            yield text
    if empty:
        raise DataError(f"{parsed.plain} holds no text: give another source")


def describe_source(source: str) -> dict[str, str]:
    """Return the record of a source: its name without folders, and for a file its digest.

    Raises:
        DataError: The kind of source is unknown, or the file does not exist.
    """
    parsed = parse_source(source)
    facts = {"source": parsed.plain}
    if parsed.kind == "file":
        with Path(parsed.value).open("rb") as file:
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return facts


def _resolve_file(path: Path) -> Path:
    path = path.expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder: give a text file")
    if not path.is_file():
        raise DataError(f"there is no text file {path}: check the path")
    if path.suffix not in _READERS:
        raise DataError(f"cannot read {path.name}: give one of {', '.join(_READERS)}")
    if path.suffix == ".parquet":
        require("a .parquet file", "data", "pyarrow")
    return path.resolve()


def _complete_hub_name(source: str, value: str) -> str:
    require("text of the hub", "data", "datasets")
    name, *rest = value.split(":")
    if not name or len(rest) > 2:
        raise DataError(f"unknown text source {source!r}: give {_SCHEMES}")
    config, split = [*rest, "", ""][:2]
    return f"{name}:{config}:{split or 'train'}"


def _read_file(path: Path) -> Iterator[str]:
    try:
        yield from _READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text: convert it first") from error
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or error}") from error


def _read_txt(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _read_json_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _get_text(_parse_line(line, path, number), f"{path.name}, line {number}")


def _parse_line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {number} is not JSON: write one object with a key 'text' per line"
        ) from error


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        if "text" not in table.schema_arrow.names:
            raise DataError(
                f"{path.name} has no column 'text': rename the column that holds the text"
            )
        batches = table.iter_batches(columns=["text"])
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, start=1):
            yield _get_text(row, f"{path.name}, row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path.name} is not a readable parquet file: {_first_line(error)}"
        ) from error


_READERS = {
    ".txt": _read_txt,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}


def _get_text(row: Any, place: str) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place} has no key 'text' with a string: every document needs one")
    return text


def _read_hub(value: str) -> Iterator[str]:
    name, config, split = value.split(":")
    _check_reachable(name)
    import datasets

    try:
        data = datasets.load_dataset(name, config or None, split=split, streaming=True)
        for number, row in enumerate(data, start=1):
            yield _get_text(row, f"hub:{value}, row {number}")
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds: network, configs, parsing
        raise DataError(f"cannot read hub:{value}: {_first_line(error)}") from error


def _check_reachable(name: str) -> None:
    # one plain request: without a network, the library itself retries for half a minute
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
    except Exception as error:
        raise DataError(
            f"the data set {name!r} is not reachable on the hub ({_first_line(error)}): check the "
            "name and the network, or save its text to a file and give file:PATH"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
