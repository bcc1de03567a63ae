"""Patterns of masks: the sets of weights of a matrix that compete with each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsity_search.errors import ConfigError

#: Columns of a block in the ``block`` pattern, as in SparseGPT (arXiv 2301.00774, section 3.3).
BLOCK = 128

_SCOPES = ("layer", "row", "block")
_GROUPS = re.compile(r"(\d+|\*):(\d+)")


@dataclass(frozen=True)
class Pattern:
    """The sets of weights of a matrix that compete with each other.

    Attributes:
        scope: ``layer``, ``row``, ``block`` (128 columns of all rows) or ``group`` (some
            consecutive columns of one row).
        group: Columns of a group (M), 0 for other scopes.
        keep: Weights that a group keeps (N), or None where the counts decide.
    """

    scope: str
    group: int = 0
    keep: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern that ``text`` describes.

        Args:
            text: ``layer``, ``row``, ``block``, ``N:M`` (**keep** N of M consecutive inputs, or
                leave the unit dense) or ``*:M`` (the counts decide how many of M are kept).

        Raises:
            ConfigError: ``text`` is none of these.
        """
        if not isinstance(text, str):  # YAML reads 2:4 as a number to the base 60
            raise ConfigError(f"pattern must be text such as 2:4, not {text!r}")
        pattern = cls(text) if text in _SCOPES else cls.parse_groups(text)
        if pattern is None:
            raise ConfigError(f"pattern must be layer, row, block, N:M or *:M, not {text!r}")
        return pattern

    @classmethod
    def parse_groups(cls, text: str) -> Pattern | None:
        """Return the pattern of ``N:M`` or ``*:M``; None for any other text.

        >>> str(Pattern.parse_groups("2:4")), Pattern.parse_groups("5:4")
        ('2:4', None)
        """
        match = _GROUPS.fullmatch(text)
        if not match:
            return None
        group, keep = int(match[2]), None if match[1] == "*" else int(match[1])
        legal = group > 0 and (keep is None or keep <= group)
        return cls("group", group, keep) if legal else None

    def __str__(self) -> str:
        if not self.is_grouped:
            return self.scope
        return f"{'*' if self.keep is None else self.keep}:{self.group}"

    @property
    def is_grouped(self) -> bool:
        """Whether weights compete in groups of M consecutive inputs."""
        return self.scope == "group"

    @property
    def sparsity(self) -> float | None:
        """The sparsity of ``N:M``; None where the counts decide."""
        return None if self.keep is None else 1 - self.keep / self.group

    def fits(self, n_weights: int) -> bool:
        """Whether ``n_weights`` is a whole number of groups."""
        return n_weights % self.group == 0

    def counts(self, n_weights: int) -> list[int]:
        """Return the possible numbers of zeros among ``n_weights`` in whole groups, increasing.

        The dense state, without zeros, is not included.

        >>> Pattern.parse("2:4").counts(8), Pattern.parse("*:4").counts(8)
        ([4], [2, 4, 6, 8])
        """
        kept = range(self.group) if self.keep is None else [self.keep]
        return [n_weights // self.group * (self.group - keep) for keep in reversed(kept)]

    def check(self, shape: Sequence[int], counts: Sequence[int]) -> None:
        """Check that counts of zeros, greater than those of the dense matrix, are possible.

        Args:
            shape: Rows and columns of the matrix.
            counts: Numbers of zeros in the whole matrix.

        Raises:
            ConfigError: The columns are not whole groups, a count cannot be shared equally among
                the groups, or it is not the number that the pattern requires.
        """
        if not self.is_grouped:
            return
        rows, columns = shape
        if columns % self.group:
            raise ConfigError(
                f"{columns} inputs are no whole number of groups of {self.group}: "
                "leave such units out with --exclude"
            )
        size = rows * columns
        for count in counts:
            each, rest = divmod(count * self.group, size)
            if rest or (self.keep is not None and each not in (0, self.group - self.keep)):
                meaning = "as many zeros" if self.keep is None else f"{self.keep} kept"
                raise ConfigError(
                    f"{count} zeros of {size} do not mean {meaning} in each group of "
                    f"{self.group}: choose a sparsity and a space whose steps are such numbers"
                )

    def removed_in_group(self, count: int, n_weights: int) -> int:
        """Return the zeros of each group if ``count`` of ``n_weights`` are zero."""
        return count * self.group // n_weights
