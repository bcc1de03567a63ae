"""Layout of a structured unit's weights in one matrix: a run of columns per structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, arange, empty_like


@dataclass(frozen=True)
class StructureLayout:
    """Layout of a structured unit's matrix, ``(hidden, count · width + biases)``.

    A structure is a channel, a head or a whole sublayer. It holds the rows of the linear layers
    that compute it and the columns of the **consumer**, the output projection that reads it. All
    of these have the width of the hidden states, so a structure is a run of ``width`` columns, of
    which the first ``inner`` belong to the consumer. The last columns are the consumers' biases,
    zeros where there is none. A bias is not a structure, but a pruner may change it.

    Structures may stand in groups that have to stay of one size, as the experts of some routers.
    Then an **item**, which is what is counted, is one structure of every group.

    Attributes:
        count: Number of structures.
        inner: Columns of a structure that belong to the consumer.
        width: Columns of a structure.
        biases: Number of consumers, each with one bias column: 1, or 2 in a whole decoder block.
        groups: Number of groups, each a run of equally many structures.
        routing: Last columns of a structure that hold an expert's row of the router.
    """

    count: int
    inner: int
    width: int
    biases: int = 1
    groups: int = 1
    routing: int = 0

    @property
    def items(self) -> int:
        """Number of items that can be removed: structures of one group."""
        return self.count // self.groups

    def by_group(self, values: Tensor) -> Tensor:
        """Return one value a structure, ``(count,)``, as ``(groups, items)``, sharing memory."""
        return values.view(self.groups, self.items)

    def places(self, order: Tensor) -> Tensor:
        """Return the place of each structure among those of its group, ``(count,)`` int64.

        Args:
            order: The structures in an order, ``(count,)`` int64.

        >>> from torch import tensor
        >>> StructureLayout(4, 1, 1, groups=2).places(tensor([3, 1, 0, 2])).tolist()
        [1, 0, 1, 0]
        """
        grouped = order[(order // self.items).argsort(stable=True)]
        places = arange(self.items, device=order.device).repeat(self.groups)
        return empty_like(order).scatter_(0, grouped, places)

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

    def n_empty(self, weight: Tensor) -> int:
        """Return the number of items that are all zeros: of the group with the fewest."""
        return int(self.by_group(self.empty(weight)).sum(dim=1).min())


def select_fullest(empty: Tensor, number: int) -> Tensor:
    """Return ``number`` indices, ascending: of non-empty structures, then the first empty ones.

    >>> from torch import tensor
    >>> select_fullest(tensor([True, False, True, False]), 3).tolist()
    [0, 1, 3]
    """
    return empty.long().argsort(stable=True)[:number].sort().values
