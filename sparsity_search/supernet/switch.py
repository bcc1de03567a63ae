"""A resident model that switches among ready-made variants of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch

from sparsity_search.errors import UnknownNameError
from sparsity_search.evidence.variants import Variants
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.narrow import Narrow
from sparsity_search.profiles.profile import SparsityProfile


class Supernet:
    """Variants of every unit of a model.

    Args:
        subject: The model.
        variants: Of each unit and pattern, by `variants_name`.
    """

    def __init__(self, subject: PrunableModel, variants: Mapping[str, Variants]) -> None:
        self.subject = subject
        self.variants = variants

    @property
    def notes(self) -> list[str]:
        """What the pruner had to say of single units, e.g. that damping was raised."""
        return [f"{name}: {n}" for name, found in self.variants.items() for n in found.notes]

    def weight(self, unit: str, dense: torch.Tensor, count: int, pattern: str) -> torch.Tensor:
        """Return a new tensor: ``dense`` of a unit with ``count`` zeros in a pattern.

        Raises:
            UnknownNameError: There is no such variant.
        """
        found = self.variants.get(variants_name(unit, pattern))
        if found is None:
            raise UnknownNameError(f"no variant of {unit} has the pattern {pattern!r}")
        return found.at(dense, count)

    @contextmanager
    def resident(self) -> Iterator[Switch]:
        """Yield a switch that turns the model into any profile; dense weights return after."""
        with self.subject.preserved() as dense:
            yield Switch(self, dense)


class Switch:
    """Turns a supernet's model into profiles; only units that change are written."""

    def __init__(self, supernet: Supernet, dense: Mapping[str, torch.Tensor]) -> None:
        self._supernet = supernet
        self._dense = dense
        self._narrow = Narrow(supernet.subject, dense)
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
        """Leave removed structures out of the matrix products inside, see `Narrow`.

        The model is only to be run there: its weights are read and switched outside.
        """
        return self._narrow.at(self._current)

    def dense(self) -> None:
        """Give the model its dense weights back; `to` sets every unit anew after that."""
        for name, weight in self._dense.items() if self._current else ():
            self._supernet.subject.views[name].write(weight)
        self._current.clear()

    def change(self, name: str, count: int, pattern: str = "") -> torch.Tensor:
        """Return what switching one unit to a variant would add to its present weights.

        Raises:
            UnknownNameError: The unit has no variant at that count, or in that pattern.
        """
        wanted = self._supernet.weight(name, self._dense[name], count, pattern)
        return wanted - self._supernet.subject.views[name].read()


def variants_name(unit: str, pattern: str) -> str:
    """Return the name of a unit's variants in a pattern; ``""`` is the pruner's own.

    >>> variants_name("layers.0.up", "2:4")
    'layers.0.up[2:4]'
    """
    return f"{unit}[{pattern}]" if pattern else unit
