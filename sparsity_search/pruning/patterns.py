"""Which weights compete with each other: the patterns that a mask can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.profiles.patterns import Groups

#: Columns of a block in the ``block`` pattern, as in SparseGPT (arXiv 2301.00774, section 3.3).
BLOCK = 128

_SCOPES = ("layer", "row", "block")


@dataclass(frozen=True)
class Pattern:
    """Which weights of a matrix compete.

    Attributes:
        scope: ``layer``, ``row``, ``block`` (128 columns of all rows) or ``group`` (some
            consecutive columns of one row).
        group: Columns of a group, 0 for other scopes.
        keep: Weights that a group keeps, or None where the counts decide.
    """

    scope: str
    group: int = 0
    keep: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern that ``text`` means.

        Args:
            text: ``layer``, ``row``, ``block``, ``N:M`` (**keep** N of M consecutive inputs, or
                leave the unit dense) or ``*:M`` (the counts decide how many of M are kept).

        Raises:
            ConfigError: It is none of these.
        """
        if not isinstance(text, str):  # YAML reads 2:4 as a number to the base 60
            raise ConfigError(f'pattern must be text, not {text!r}: write "2:4" with quotes')
        if text in _SCOPES:
            return cls(text)
        found = Groups.parse(text)
        if found is None:
            raise ConfigError(f"pattern must be layer, row, block, N:M or *:M, not {text!r}")
        return cls("group", found.size, found.keep)

    @property
    def sparsity(self) -> float | None:
        """The sparsity of ``N:M``; None where the counts decide."""
        return None if self.keep is None else 1 - self.keep / self.group

    @classmethod
    def of(cls, pruner: object) -> Pattern | None:
        """Return the pattern of a pruner's mask source, or its own; None if it has none."""
        if getattr(pruner, "mask", None) is not None:
            return cls.of(pruner.mask)  # type: ignore[attr-defined]
        return cls.parse(pruner.pattern) if hasattr(pruner, "pattern") else None

    def check(self, weight: Tensor, counts: Sequence[int]) -> None:
        """Check that counts of zeros, more than there are already, are possible.

        Raises:
            ConfigError: The columns are not whole groups, or a count is not the same number for
                every group, or not the number that the pattern says.
        """
        if self.scope != "group":
            return
        if weight.shape[1] % self.group:
            raise ConfigError(
                f"{weight.shape[1]} inputs are no whole number of groups of {self.group}: "
                "leave such units out with --exclude"
            )
        for count in counts:
            each, rest = divmod(count * self.group, weight.numel())
            if rest or (self.keep is not None and each not in (0, self.group - self.keep)):
                wanted = "as many zeros" if self.keep is None else f"{self.keep} kept"
                raise ConfigError(
                    f"{count} zeros of {weight.numel()} do not mean {wanted} in each group of "
                    f"{self.group}: choose a sparsity and a space whose steps are such numbers"
                )

    def removed_in_group(self, count: int, weight: Tensor) -> int:
        """Return how many weights of each group are removed when ``count`` are in all."""
        return count * self.group // weight.numel()


def with_pattern(pruner: Pruner, pattern: str) -> Pruner:
    """Return the pruner with another pattern, which is its mask source's if it has one.

    Args:
        pruner: A pruner.
        pattern: ``N:M``; or ``""``, which is the pruner's own.

    Raises:
        ConfigError: The pruner has no patterns, not this one, or its groups are not consecutive
            inputs of the matrix as it is stored.
    """
    if not pattern:
        return pruner
    source = getattr(pruner, "mask", None)
    if source is not None:
        return replace(pruner, mask=with_pattern(source, pattern))  # type: ignore[call-arg]
    if not hasattr(pruner, "pattern"):
        raise ConfigError(f"{type(pruner).__name__} has no patterns, so it cannot prune {pattern}")
    if not pruner.groups_inputs:
        raise ConfigError(
            f"{type(pruner).__name__} cannot prune {pattern} as sparse kernels need it: with its "
            "settings the groups are not consecutive inputs of the stored matrix"
        )
    return replace(pruner, pattern=pattern)  # type: ignore[call-arg]
