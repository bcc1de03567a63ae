"""The model of a search while a supernet's variants replace its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparsity_search.supernet.switch import Supernet, Switch


class ResidentModel:
    """Holder of the switch of the supernet in the model, if there is one.

    An allocator whose settings are searched needs the dense model between two measurements.
    """

    def __init__(self) -> None:
        self._switch: Switch | None = None

    @contextmanager
    def hold(self, supernet: Supernet) -> Iterator[Switch]:
        """Yield the switch of a supernet; the model is dense afterwards."""
        with supernet.resident() as switch:
            self._switch = switch
            try:
                yield switch
            finally:
                self._switch = None

    def make_dense(self) -> None:
        """Restore the dense weights; the next switch sets every unit again."""
        if self._switch is not None:
            self._switch.dense()
