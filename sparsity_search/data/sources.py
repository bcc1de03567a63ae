"""Text sources: `file:PATH`, `hub:NAME[:CONFIG[:SPLIT]]`, `sample` and `self`.

`sample` is a small text that comes with the package, and `self` is text that the model samples.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.data.text_files import BYTE_ORDER_MARK, read_json_lines, read_text
from sparsity_search.errors import DataError, suggest_file
from sparsity_search.utils.extras import require
from sparsity_search.utils.files import compute_file_digest

#: The text that comes with the package.
SAMPLE = "sample"
_KINDS = ("file", "hub", SAMPLE, "self")
_SCHEMES = "file:PATH, hub:NAME[:CONFIG[:SPLIT]], sample or self"
#: The text of `sample`; the README next to it says where it is from.
_SAMPLE = Path(__file__).parent / "sample" / "passages.jsonl"
_PROBE_SECONDS = 10.0
#: A source whose first rows, as many as this, have no text is taken to have none.
_PATIENCE = 1000


@dataclass(frozen=True)
class Source:
    """A parsed text source; equal sources hold the same text.

    Attributes:
        kind: ``file``, ``hub``, ``sample`` or ``self``.
        value: Resolved path, or ``NAME:CONFIG:SPLIT``, or empty.
    """

    kind: str
    value: str = ""

    @property
    def file(self) -> Path | None:
        """The file that holds the text, if it is in one."""
        if self.kind == SAMPLE:
            return _SAMPLE
        return Path(self.value) if self.kind == "file" else None

    @property
    def plain(self) -> str:
        """Name of the source in records: a file without its folder."""
        if self.kind == "file":
            return f"file:{Path(self.value).name}"
        return f"hub:{self.value}" if self.kind == "hub" else self.kind

    def describe(self) -> dict[str, str]:
        """Return the source's plain name, and the digest of its file."""
        facts = {"source": self.plain}
        if self.file is not None:
            facts["sha256"] = compute_file_digest(self.file)[:16]
        return facts


def parse_source(source: str) -> Source:
    """Parse a text source.

    Raises:
        DataError: The kind of source is unknown, or the file does not exist.
        MissingExtraError: The extra ``data`` is needed and not installed.
    """
    if source in (SAMPLE, "self"):
        return Source(source)
    kind, _, value = source.partition(":")
    if kind == "hub" and value:
        return Source("hub", _complete_hub_name(source, value))
    if kind == "file" and value:
        return Source("file", str(_resolve_file(Path(value))))
    path = Path(source).expanduser()
    if path.is_file() or (":" not in source and path.suffix in _READERS):
        return Source("file", str(_resolve_file(path)))
    near = [] if kind in _KINDS else difflib.get_close_matches(kind, _KINDS, n=1)
    meant = f"did you mean {source.replace(kind, near[0], 1)}? " if near else ""
    raise DataError(f"unknown text source {source!r}: {meant}give {_SCHEMES}")


class Documents:
    """The documents of a source in order, read as they are asked for.

    A .txt file is one document; .jsonl and .json files with one object a line, .parquet files and
    data sets of the hub hold documents under ``text``. Rows without text are skipped: empty
    lines, and rows whose ``text`` is missing, null or blank. Byte-order marks are removed.

    Args:
        source: ``file:PATH``, a bare path, ``hub:NAME[:CONFIG[:SPLIT]]`` (split ``train`` by
            default), or ``sample``.

    Attributes:
        skipped: Number of rows without text so far.

    Raises:
        DataError: The source is not legal or missing; while it is read, also that it is not
            readable, that a ``text`` is no string, or that there is none at all.
    """

    def __init__(self, source: str) -> None:
        self._source = parse_source(source)
        if self._source.kind == "self":
            raise DataError("the source self has no documents: the model samples its text")
        self.skipped = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the documents, without loading more than needed."""
        empty = True
        for row in _read_rows(self._source):
            text = (row or "").replace(BYTE_ORDER_MARK, "")
            if text.strip():
                empty = False
                yield text
                continue
            self.skipped += 1
            if empty and self.skipped == _PATIENCE:
                break  # a data set of the hub may be endless
        if empty:
            raise DataError(
                f"{self._source.plain} holds no text (rows read: {self.skipped}): give another "
                "source, or put each document under the key 'text'"
            )


def _resolve_file(path: Path) -> Path:
    path = path.expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder: give a text file")
    if not path.is_file():
        raise DataError(f"there is no text file {path}{suggest_file(path) or ': check the path'}")
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


def _read_rows(source: Source) -> Iterator[str | None]:
    """Return the text of each row; None where there is none."""
    if source.file is None:
        return _read_hub(source.value)
    return _READERS[source.file.suffix](source.file)


def _read_txt(path: Path) -> Iterator[str]:
    yield read_text(path)


def _read_json_rows(path: Path) -> Iterator[str | None]:
    for place, row in read_json_lines(path):
        yield _get_text(row, place)


def _read_parquet(path: Path) -> Iterator[str | None]:
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
    ".jsonl": _read_json_rows,
    ".json": _read_json_rows,
    ".parquet": _read_parquet,
}


def _get_text(row: Any, place: str) -> str | None:
    """Return the text of a row; None if it has none."""
    text = row.get("text") if isinstance(row, dict) else row
    if text is None or (isinstance(row, dict) and isinstance(text, str)):
        return text
    raise DataError(f"{place} is no object whose 'text' is a string or null: correct or remove it")


def _read_hub(value: str) -> Iterator[str | None]:
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
