"""The project's own ``profile.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from sparsity_search.errors import ProfileError, told_of
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.utils.reading import parse_json
from sparsity_search.utils.shapes import Count, Shape, Size, parse_shape


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
        with told_of("the profile is corrupt", ProfileError):
            value = parse_json(text)
        try:
            value = PROFILE_JSON.check(value)
            profile = SparsityProfile.from_json(_parse_layout(value), value)
        except ProfileError as error:
            raise ProfileError(f"{error}; if it is of another format, name that") from error
        known = profile.to_json()
        return ProfileDocument(profile, {k: v for k, v in value.items() if k not in known})

    def write(self, document: ProfileDocument) -> str:
        """Return counts, totals and facts as indented JSON."""
        value = PROFILE_JSON.add_checksum({**document.profile.to_json(), **document.facts})
        return json.dumps(value, indent=2, allow_nan=False) + "\n"


class _UnitShape(Shape):
    """What the file must say of each unit, so that it can be read without a model."""

    block: Count
    role: str
    of: Size
    weights_each: Size


def _parse_layout(value: Any) -> Layout:
    """Return the units that a profile describes.

    Raises:
        ProfileError: It describes none.
    """
    units = []
    for name, entry in PROFILE_JSON.check(value)["units"].items():
        subject = f"not {PROFILE_JSON.kind}: {name}"
        each = parse_shape(_UnitShape, entry, subject, ProfileError)
        units.append(
            Unit(
                name=name,
                block=each.block,
                role=each.role,
                count=each.of,
                cost=each.weights_each,
            )
        )
    return Layout(units)
