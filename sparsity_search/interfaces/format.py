"""The interface of a file format of profiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile


@dataclass(frozen=True)
class ProfileDocument:
    """The contents of a file.

    Attributes:
        profile: The profile.
        facts: Further entries, e.g. ``removes`` (the kind of units) and ``model``; only some
            formats keep them.
    """

    profile: SparsityProfile
    facts: Mapping[str, Any] = field(default_factory=dict)


class Format(ABC):
    """Reads and writes one kind of file. Plugins are frozen keyword-only dataclasses.

    Rules for plugins:

    - A profile that was written and read again is the same, as far as the format can hold it.
    - Text that is not of the format, or names other units, raises a `ProfileError` of one line.
    - A format that is not ``sized`` raises a `ConfigError` without a layout.
    - No two formats claim the same suffix.

    Attributes:
        suffixes: Ends of file names that this format claims, lower case, with their dot.
        sized: Whether the file holds the sizes of its units: it is read without a layout, and
            nothing is rounded.
        patterned: Whether the file can state that a unit's zeros are N:M.
        experimental: Why users should prefer another format; empty if there is no reason.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    sized: ClassVar[bool] = False
    patterned: ClassVar[bool] = False
    experimental: ClassVar[str] = ""

    @abstractmethod
    def read(self, text: str, layout: Layout | None = None) -> ProfileDocument:
        """Return the contents of a file.

        Args:
            text: The whole file.
            layout: The model's units; a sized format does not read them.

        Raises:
            ProfileError: The text is not of this format, or about other units.
            ConfigError: A layout or a setting is needed.
        """

    @abstractmethod
    def write(self, document: ProfileDocument) -> str:
        """Return the text of a whole file; it ends with a newline.

        Raises:
            ProfileError: This format cannot hold the profile.
            ConfigError: A setting is needed.
        """
