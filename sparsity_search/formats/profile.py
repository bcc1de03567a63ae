"""The project's own ``profile.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from sparsity_search.errors import ProfileError
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile


@dataclass(frozen=True, kw_only=True)
class ProfileFormat(Format):
    """The profile.json that every command here writes and reads: exact counts with provenance."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    sized: ClassVar[bool] = True
    patterned: ClassVar[bool] = True

    def read(self, text: str, layout: Layout | None = None) -> ProfileDocument:
        """Return the profile over units of the file's own sizes.

        The file does not say how many weights were zero before: its units have none.
        """
        del layout
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"the profile is corrupt, it is not JSON: {error}") from error
        try:
            profile = SparsityProfile.from_json(_parse_layout(value), value)
        except ProfileError as error:
            raise ProfileError(f"{error}; if it is of another format, name that") from error
        known = profile.to_json()
        return ProfileDocument(profile, {k: v for k, v in value.items() if k not in known})

    def write(self, document: ProfileDocument) -> str:
        """Return counts, totals and facts as indented JSON."""
        value = {**document.profile.to_json(), **document.facts}
        return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _parse_layout(value: Any) -> Layout:
    """Return the units that a profile describes.

    Raises:
        ProfileError: It describes none.
    """
    try:
        units = [
            Unit(
                name=name,
                block=_parse_integer(entry, "block", 0),
                role=str(entry["role"]),
                count=_parse_integer(entry, "of", 1),
                cost=_parse_integer(entry, "weights_each", 1),
            )
            for name, entry in value["units"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ProfileError(f"not a sparsity profile: no {error} in it") from error
    return Layout(units)


def _parse_integer(entry: dict[str, Any], key: str, least: int) -> int:
    number = entry[key]
    if type(number) is not int or not least <= number < 10**15:
        raise ProfileError(f"not a sparsity profile: {key} must be an integer, not {number!r}")
    return number
