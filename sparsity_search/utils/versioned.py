"""JSON files of a known kind: an object with a format number and a checksum.

Both are checked wherever such a file is read. One digit that was changed, by a fault of a disk or
by hand, could give another profile without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.errors import SparsitySearchError, show_value
from sparsity_search.utils.files import compute_digest, write_json
from sparsity_search.utils.reading import read_json
from sparsity_search.utils.shapes import Shape, parse_shape

#: Keys of the format number and of the checksum over all else.
_FORMAT, _CHECKSUM = "format", "checksum"


@dataclass(frozen=True)
class VersionedJson:
    """A kind of JSON file.

    Attributes:
        kind: Its name in messages, with an article: ``"a sparsity profile"``.
        version: Format number of the files that this version of the package writes and reads.
        shape: The keys and types that every file has.
        error: Raised for a file that is corrupt, of another kind or of another format.
    """

    kind: str
    version: int
    shape: type[Shape]
    error: type[SparsitySearchError]

    def check(self, value: Any, source: Path | None = None) -> dict[str, Any]:
        """Return ``value`` without its checksum, if it is of this kind, format and shape.

        A value without a checksum is legal: other tools and people write such files too.

        Args:
            value: Any JSON value.
            source: The file that holds it, named in messages.

        Raises:
            SparsitySearchError: It is not, or its checksum is another, as `error`.
        """
        if not isinstance(value, dict):
            raise self.error(f"{self._refuse(source)}: it holds no JSON object")
        if _FORMAT not in value:
            raise self.error(f"{self._refuse(source)}: no {_FORMAT!r} in it")
        if type(value[_FORMAT]) is not int or value[_FORMAT] != self.version:
            subject = "" if source is None else f"{source} is "
            raise self.error(
                f"{subject}{self.kind} of format {show_value(value[_FORMAT])}; "
                f"this version reads format {self.version}"
            )
        contents = {key: inner for key, inner in value.items() if key != _CHECKSUM}
        if _CHECKSUM in value and value[_CHECKSUM] != compute_digest(contents):
            raise self.error(
                f"{source or self.kind} is damaged: its contents do not match their checksum; "
                f"restore it or make it anew (if it was changed on purpose, remove {_CHECKSUM!r})"
            )
        parse_shape(self.shape, contents, self._refuse(source), self.error)
        return contents

    def add_checksum(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``value`` with the format number and a checksum, as `write` writes it."""
        contents = json.loads(json.dumps({_FORMAT: self.version, **value}, allow_nan=False))
        return {**contents, _CHECKSUM: compute_digest(contents)}

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write ``value`` with the format number and a checksum, atomically."""
        write_json(path, self.add_checksum(value))

    def read(self, path: Path) -> dict[str, Any]:
        """Return the object in a file.

        Raises:
            ConfigError: The file cannot be read.
            SparsitySearchError: It is not of this kind, format and shape, as `error`.
        """
        return self.check(read_json(path, self.error), path)

    def _refuse(self, source: Path | None) -> str:
        return f"{'' if source is None else f'{source} is '}not {self.kind}"
