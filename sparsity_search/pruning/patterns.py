"""The pattern of a pruner: its own, or that of its mask source."""

from __future__ import annotations

from dataclasses import replace

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel, is_grouped
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.registry import name_plugin


def pattern_of(pruner: Pruner) -> Pattern | None:
    """Return the pattern of a pruner's mask source, or its own; None if it has none."""
    source = getattr(pruner, "mask", None)
    if source is not None:
        return pattern_of(source)
    return Pattern.parse(pruner.pattern) if hasattr(pruner, "pattern") else None


def groups_of(pruner: Pruner) -> Pattern | None:
    """Return the pattern of a pruner if it is ``N:M`` or ``*:M``, else None."""
    pattern = pattern_of(pruner)
    return pattern if pattern is not None and pattern.is_grouped else None


def check_zeros(subject: PrunableModel, pruner: Pruner) -> None:
    """Check that a pruner with a pattern ``N:M`` can give it to every unit of a model.

    A unit with as many zeros as the pattern makes is not pruned, so it must have the pattern.

    Raises:
        InfeasibleBudgetError: A unit has too many zeros, or as many elsewhere.
    """
    pattern = groups_of(pruner)
    if pattern is None or pattern.sparsity is None:
        return
    for unit in subject.layout:
        wanted = round(pattern.sparsity * unit.count)
        if unit.zeros < wanted or is_grouped(subject.views[unit.name].read(), str(pattern)):
            subject.release()
            continue
        raise InfeasibleBudgetError(
            f"{unit.name} has {unit.zeros} zeros of {unit.count} already, which are not {pattern} "
            f"(it makes {wanted}), and zeros stay: prune the dense model"
        )


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
        raise ConfigError(f"{name_plugin(pruner)} has no patterns, so it cannot prune {pattern}")
    if not pruner.groups_inputs:
        raise ConfigError(
            f"{name_plugin(pruner)} cannot prune {pattern} as sparse kernels need it: with its "
            "settings the groups are not consecutive inputs of the stored matrix"
        )
    return replace(pruner, pattern=pattern)  # type: ignore[call-arg]
