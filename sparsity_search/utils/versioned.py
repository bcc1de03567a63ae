"""JSON files of a known kind: an object with a format number, checked wherever it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.errors import SparsitySearchError, show_value
from sparsity_search.utils.reading import read_json
from sparsity_search.utils.shapes import Shape, parse_shape

#: Key of the format number.
_FORMAT = "format"


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
        """Return ``value`` if it is of this kind, format and shape.

        Args:
            value: Any JSON value.
            source: The file that holds it, named in messages.

        Raises:
            SparsitySearchError: It is not, as `error`.
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
        parse_shape(self.shape, value, self._refuse(source), self.error)
        return value

    def read(self, path: Path) -> dict[str, Any]:
        """Return the object in a file.

        Raises:
            ConfigError: The file cannot be read.
            SparsitySearchError: It is not of this kind, format and shape, as `error`.
        """
        return self.check(read_json(path, self.error), path)

    def _refuse(self, source: Path | None) -> str:
        return f"{'' if source is None else f'{source} is '}not {self.kind}"
