"""N:M patterns as text and numbers: of each group of M consecutive inputs, N weights are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"(\d+|\*):(\d+)")


@dataclass(frozen=True)
class Groups:
    """A pattern ``N:M``, or ``*:M``.

    Attributes:
        size: Weights of a group.
        keep: How many of them are kept; None for any number.
    """

    size: int
    keep: int | None = None

    @classmethod
    def parse(cls, text: str) -> Groups | None:
        """Return the pattern that a text means; None if it means none.

        >>> Groups.parse("2:4"), Groups.parse("*:8"), Groups.parse("5:4")
        (Groups(size=4, keep=2), Groups(size=8, keep=None), None)
        """
        found = _TEXT.fullmatch(text)
        if not found:
            return None
        size, keep = int(found[2]), None if found[1] == "*" else int(found[1])
        return cls(size, keep) if size > 0 and (keep is None or keep <= size) else None

    @property
    def kept(self) -> range:
        """Numbers of weights that a group may keep, less than all, increasing."""
        return range(self.size) if self.keep is None else range(self.keep, self.keep + 1)

    def fits(self, n_weights: int) -> bool:
        """Whether so many weights are whole groups."""
        return n_weights % self.size == 0

    def zeros(self, n_weights: int, keep: int) -> int:
        """Return the zeros of ``n_weights`` of which every group keeps ``keep``."""
        return n_weights // self.size * (self.size - keep)
