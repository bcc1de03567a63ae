"""Layout of a structured unit's weights in one matrix: a run of columns per structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StructureLayout:
    """Layout of a structured unit's matrix, ``(hidden, count · width + biases)``.

    A structure is a channel, a head or a whole sublayer. It holds the rows of the linear layers
    that compute it and the columns of the **consumer**, the output projection that reads it. All
    of these have the width of the hidden states, so a structure is a run of ``width`` columns, of
    which the first ``inner`` belong to the consumer. The last columns are the consumers' biases,
    zeros where there is none. A bias is not a structure, but a pruner may change it.

    Attributes:
        count: Number of structures.
        inner: Columns of a structure that belong to the consumer.
        width: Columns of a structure.
        biases: Number of consumers, each with one bias column: 1, or 2 in a whole decoder block.
    """

    count: int
    inner: int
    width: int
    biases: int = 1

    def bodies(self, weight: Tensor) -> Tensor:
        """Return the structures, ``(hidden, count, width)``, sharing memory."""
        return weight[:, : self.count * self.width].view(len(weight), self.count, self.width)

    def consumer(self, weight: Tensor) -> Tensor:
        """Return the consumer's weight, ``(hidden, count · inner)``, structure by structure.

        The statistics of the consumer's inputs have the same order.
        """
        return self.bodies(weight)[:, :, : self.inner].flatten(1)

    def bias(self, weight: Tensor) -> Tensor:
        """Return the biases of the consumers, ``(hidden, biases)``."""
        return weight[:, self.count * self.width :]

    def empty(self, weight: Tensor) -> Tensor:
        """Return a mask of the structures that are all zeros, ``(count,)`` bool."""
        return (self.bodies(weight) == 0).all(dim=2).all(dim=0)


def select_fullest(empty: Tensor, number: int) -> Tensor:
    """Return ``number`` indices, ascending: of non-empty structures, then the first empty ones.

    >>> from torch import tensor
    >>> select_fullest(tensor([True, False, True, False]), 3).tolist()
    [0, 1, 3]
    """
    return empty.long().argsort(stable=True)[:number].sort().values
