"""A resident model that switches between stored variants of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch

from sparsity_search.errors import UnknownNameError
from sparsity_search.evidence.variants import Variants
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.narrowing import LayerNarrower
from sparsity_search.profiles.profile import SparsityProfile


class Supernet:
    """Variants of every unit of a model.

    Args:
        subject: The model.
        variants: Variants of each unit and pattern, by `get_variants_name`.
    """

    def __init__(self, subject: PrunableModel, variants: Mapping[str, Variants]) -> None:
        self.subject = subject
        self.variants = variants

    @property
    def notes(self) -> list[str]:
        """Messages of the pruner about single units, e.g. that damping was raised."""
        return [f"{name}: {n}" for name, own in self.variants.items() for n in own.notes]

    def weight(self, unit: str, dense: torch.Tensor, count: int, pattern: str) -> torch.Tensor:
        """Return a new tensor: a unit's ``dense`` weight with ``count`` zeros in a pattern.

        Raises:
            UnknownNameError: There is no such variant.
        """
        variants = self.variants.get(get_variants_name(unit, pattern))
        if variants is None:
            raise UnknownNameError(f"no variant of {unit} has the pattern {pattern!r}")
        return variants.at(dense, count)

    @contextmanager
    def resident(self) -> Iterator[Switch]:
        """Yield a switch that sets the model to profiles, and restore dense weights afterwards."""
        with self.subject.preserved() as dense:
            yield Switch(self, dense)


class Switch:
    """Switch of a supernet's model to profiles, which writes only units that change."""

    def __init__(self, supernet: Supernet, dense: Mapping[str, torch.Tensor]) -> None:
        self._supernet = supernet
        self._dense = dense
        self._narrow = LayerNarrower(supernet.subject, dense)
        self._current: dict[str, tuple[int, str]] = {}

    @torch.inference_mode()
    def to(self, profile: SparsityProfile) -> None:
        """Set the model's units to their variants in ``profile``.

        Raises:
            UnknownNameError: A unit has no variant at the profile's count, or in its pattern.
        """
        for unit, state in zip(profile.layout, profile.states, strict=True):
            if self._current.get(unit.name) == state:
                continue
            weight = self._supernet.weight(unit.name, self._dense[unit.name], *state)
            self._supernet.subject.views[unit.name].write(weight)
            self._supernet.subject.release()
            self._current[unit.name] = state

    def narrow(self) -> AbstractContextManager[None]:
        """Leave removed structures out of the matrix products inside, see `LayerNarrower`.

        Inside, the model may only be run; its weights must be read and switched outside.
        """
        return self._narrow.at(self._current)

    def dense(self) -> None:
        """Restore the model's dense weights; afterwards `to` writes every unit."""
        for name, weight in self._dense.items() if self._current else ():
            self._supernet.subject.views[name].write(weight)
        self._current.clear()

    def change(self, name: str, count: int, pattern: str = "") -> torch.Tensor:
        """Return the difference between a unit's variant and its current weights.

        Raises:
            UnknownNameError: The unit has no variant at that count, or in that pattern.
        """
        variant = self._supernet.weight(name, self._dense[name], count, pattern)
        return variant - self._supernet.subject.views[name].read()


def get_variants_name(unit: str, pattern: str) -> str:
    """Return the name of a unit's variants in a pattern; ``""`` is the pruner's own pattern.

    >>> get_variants_name("layers.0.up", "2:4")
    'layers.0.up[2:4]'
    """
    return f"{unit}[{pattern}]" if pattern else unit
