"""A resident model that switches among ready-made variants of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from sparsity_search.models.prunable import PrunableModel
from sparsity_search.profile import SparsityProfile
from sparsity_search.variants import Variants


class Supernet:
    """Variants of every unit of a model.

    Args:
        subject: The model.
        variants: Of each unit, by name.
    """

    def __init__(self, subject: PrunableModel, variants: Mapping[str, Variants]) -> None:
        self.subject = subject
        self.variants = variants

    @property
    def notes(self) -> list[str]:
        """What the pruner had to say of single units, e.g. that damping was raised."""
        return [f"{name}: {n}" for name, found in self.variants.items() for n in found.notes]

    @contextmanager
    def resident(self) -> Iterator[Switch]:
        """Yield a switch that turns the model into any profile; dense weights return after."""
        with self.subject.preserved() as dense:
            yield Switch(self, dense)


class Switch:
    """Turns a supernet's model into profiles; only units whose count changes are written."""

    def __init__(self, supernet: Supernet, dense: Mapping[str, torch.Tensor]) -> None:
        self._supernet = supernet
        self._dense = dense
        self._current: dict[str, int] = {}

    @torch.inference_mode()
    def to(self, profile: SparsityProfile) -> None:
        """Set the model's units to their variants in ``profile``.

        Raises:
            UnknownNameError: A unit has no variant at the profile's count.
        """
        for unit, count in zip(profile.layout, profile.removed, strict=True):
            if self._current.get(unit.name) == count:
                continue
            variants = self._supernet.variants[unit.name]
            weight = variants.at(self._dense[unit.name], count)
            self._supernet.subject.views[unit.name].write(weight)
            self._current[unit.name] = count

    def change(self, name: str, count: int) -> torch.Tensor:
        """Return what switching one unit to ``count`` would add to its present weights.

        Raises:
            UnknownNameError: The unit has no variant at that count.
        """
        wanted = self._supernet.variants[name].at(self._dense[name], count)
        return wanted - self._supernet.subject.views[name].read()
