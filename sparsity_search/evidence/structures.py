"""How a structured unit's weights are one matrix: a run of columns for each structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Structures:
    """Shape of a structured unit's matrix, ``(hidden, count · width + biases)``.

    A structure (a channel, a head, a whole sublayer) is everything that is removed with it: the
    rows of the linears that make it, and the columns of the **consumer**, the output projection
    that reads it. All of these have the width of the hidden states, so that a structure is a run
    of ``width`` columns, of which the first ``inner`` are the consumer's. Behind them stands the
    consumer's bias, zeros where it has none: it is no structure, but removing may change it.

    Attributes:
        count: Structures.
        inner: Columns of a structure that belong to the consumer.
        width: All columns of a structure.
        biases: Consumers, each with one bias column (1, or 2 in a whole decoder block).
    """

    count: int
    inner: int
    width: int
    biases: int = 1

    def bodies(self, weight: Tensor) -> Tensor:
        """Return the structures, ``(hidden, count, width)``; shares memory."""
        return weight[:, : self.count * self.width].view(len(weight), self.count, self.width)

    def consumer(self, weight: Tensor) -> Tensor:
        """Return the consumer's weight, ``(hidden, count · inner)``, structure by structure.

        Statistics of the consumer's inputs come in the same order.
        """
        return self.bodies(weight)[:, :, : self.inner].flatten(1)

    def bias(self, weight: Tensor) -> Tensor:
        """Return the biases of the consumers, ``(hidden, biases)``."""
        return weight[:, self.count * self.width :]

    def empty(self, weight: Tensor) -> Tensor:
        """Return which structures are all zeros, ``(count,)`` bool."""
        return (self.bodies(weight) == 0).all(dim=2).all(dim=0)


def fullest(empty: Tensor, number: int) -> Tensor:
    """Return ``number`` structures in order: all that are not empty, then the first empty ones.

    >>> from torch import tensor
    >>> fullest(tensor([True, False, True, False]), 3).tolist()
    [0, 1, 3]
    """
    return empty.long().argsort(stable=True)[:number].sort().values
