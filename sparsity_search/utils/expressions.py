"""Regular expressions of users, matched against names in a time that grows with their length.

Python's own engine tries all ways to match, so that ``(a+)+b`` never ends on a name of thirty
letters. That of pydantic (Rust's ``regex``) does not. It has neither look-around nor references
to groups, and refuses an expression whose automaton is too large.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from sparsity_search.errors import ConfigError, show_value


@dataclass(frozen=True)
class Expression:
    """A regular expression.

    Attributes:
        text: The expression.
        option: What it was given to, for messages: ``"--exclude"``.

    Raises:
        ConfigError: It is none, or uses what is not supported.

    >>> Expression("mlp$", "--exclude").finds("layers.0.mlp")
    True
    >>> Expression("layers", "--exclude").matches("layers.0.mlp")
    False
    """

    text: str
    option: str

    def __post_init__(self) -> None:
        try:
            _compile(self.text)
        except SchemaError as error:
            reason = str(error).strip().splitlines()[-1].strip().removeprefix("error: ")
            raise ConfigError(
                f"{self.option} {show_value(self.text)} is not a regular expression that can be "
                f"used: {reason.removeprefix('SchemaError: ')}"
            ) from error

    def finds(self, name: str) -> bool:
        """Whether a part of a name matches."""
        return _accepts(self.text, name)

    def matches(self, name: str) -> bool:
        """Whether a whole name matches."""
        return _accepts(f"^(?:{self.text})$", name)


def _accepts(pattern: str, name: str) -> bool:
    try:
        _compile(pattern).validate_python(name)
    except ValidationError:
        return False
    return True


@lru_cache
def _compile(pattern: str) -> TypeAdapter[str]:
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
