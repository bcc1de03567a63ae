"""The project's own ``profile.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

from sparsity_search.errors import ProfileError, told_of
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile, read_layout
from sparsity_search.utils.reading import parse_json


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
            profile = SparsityProfile.from_json(read_layout(value), value)
        except ProfileError as error:
            raise ProfileError(f"{error}; if it is of another format, name that") from error
        known = profile.to_json()
        return ProfileDocument(profile, {k: v for k, v in value.items() if k not in known})

    def write(self, document: ProfileDocument) -> str:
        """Return counts, totals and facts as indented JSON."""
        value = PROFILE_JSON.add_checksum({**document.profile.to_json(), **document.facts})
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
