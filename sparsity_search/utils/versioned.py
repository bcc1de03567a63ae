"""JSON files of a known kind: an object with a format number, checked wherever it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.errors import ConfigError, SparsitySearchError

#: Key of the format number.
_FORMAT = "format"


@dataclass(frozen=True)
class VersionedJson:
    """A kind of JSON file.

    Attributes:
        kind: Its name in messages, with an article: ``"a sparsity profile"``.
        version: Format number of the files that this version of the package writes and reads.
        keys: Keys that every file has.
        error: Raised for a file that is corrupt, of another kind or of another format.
    """

    kind: str
    version: int
    keys: tuple[str, ...]
    error: type[SparsitySearchError]

    def check(self, value: Any, source: Path | None = None) -> dict[str, Any]:
        """Return ``value`` if it is of this kind and format.

        Args:
            value: Any JSON value.
            source: The file that holds it, named in messages.

        Raises:
            SparsitySearchError: It is not, as `error`.
        """
        if not isinstance(value, dict):
            raise self._refusal(source, "it holds no JSON object")
        if _FORMAT in value and value[_FORMAT] != self.version:
            subject = "" if source is None else f"{source} is "
            raise self.error(
                f"{subject}{self.kind} of format {value[_FORMAT]!r}; "
                f"this version reads format {self.version}"
            )
        for key in (_FORMAT, *self.keys):
            if key not in value:
                raise self._refusal(source, f"no {key!r} in it")
        return value

    def read(self, path: Path) -> dict[str, Any]:
        """Return the object in a file.

        Raises:
            ConfigError: The file cannot be read.
            SparsitySearchError: It is not of this kind and format, as `error`.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise self.error(f"{path} is corrupt: {error}") from error
        try:
            return self.check(json.loads(text), path)
        except (json.JSONDecodeError, RecursionError) as error:
            raise self.error(f"{path} is corrupt: {error}") from error

    def _refusal(self, source: Path | None, fault: str) -> SparsitySearchError:
        subject = "" if source is None else f"{source} is "
        return self.error(f"{subject}not {self.kind}: {fault}")
