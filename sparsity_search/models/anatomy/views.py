"""Views of a unit's weights as one matrix, however the model stores them.

Pruners and the supernet use only views, so transposed, fused or 3-D weights need a new view here
and no change elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.linears import as_matrix, read_matrix, read_matrix_gradient

#: Message of methods that need `WeightView.effects` of all units, see `are_linear`.
NOT_LINEAR = "this method needs units in linear layers: leave experts out with --exclude"


@dataclass(frozen=True, eq=False)
class LinearEffect:
    """Effect of a change of a unit's weights on the outputs of one linear layer.

    Attributes:
        linear: The layer.
        columns: Indices of its inputs that the change reads, ``(n,)`` int64; None for all.
        weight: Change of its weight in these columns, ``(outputs, n)``.
        bias: Change of its bias, ``(outputs,)``; None for none.
    """

    linear: nn.Module
    columns: Tensor | None
    weight: Tensor
    bias: Tensor | None = None

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the change of the layer's outputs, ``(tokens, outputs)``, for its inputs."""
        used = inputs if self.columns is None else inputs[:, self.columns]
        return nn.functional.linear(used, self.weight, self.bias)


def are_linear(views: Iterable[WeightView]) -> bool:
    """Return whether `WeightView.effects` is known of all views."""
    return all(type(view).effects is not WeightView.effects for view in views)


class WeightView(ABC):
    """The weights of one unit."""

    @abstractmethod
    def read(self) -> Tensor:
        """Return the weights as one matrix, which may share memory with the model."""

    @abstractmethod
    def read_gradient(self) -> Tensor:
        """Return the weights' gradient in the shape of `read`, after a backward pass."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Return the parameters that hold the weights."""

    @abstractmethod
    def write(self, weight: Tensor) -> None:
        """Replace the weights by ``weight``, in the shape of `read` and the model's dtype."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module whose first argument is the unit's input."""

    def inputs(self, tensor: Tensor) -> Tensor:
        """Return the module's input, ``(…, inputs)``, in the order of the matrix's columns."""
        return tensor

    def outputs(self, tensor: Tensor) -> Tensor:
        """Return the unit's part of the module's output, ``(…, outputs)``."""
        return tensor

    def effects(self, change: Tensor) -> list[LinearEffect]:
        """Return the effects on linear layers of a change of the weights, of the shape of `read`.

        Raises:
            ConfigError: The unit is not made of linear layers.
        """
        del change
        raise ConfigError(NOT_LINEAR)

    @property
    def structures(self) -> StructureLayout | None:
        """Layout of the structures in the matrix; None if single weights are removed."""
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Number of items that can be removed, and weights per item."""
        return self.read().numel(), 1

    def n_zeros(self) -> int:
        """Return the number of items that are exactly zero."""
        weight = self.read()
        if self.structures is not None:
            return self.structures.n_empty(weight)
        return weight.numel() - int(torch.count_nonzero(weight))


class LinearView(WeightView):
    """The weight of one linear layer, ``(outputs, inputs)`` however it is stored.

    Args:
        linear: The layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    @property
    def module(self) -> nn.Module:
        """The linear layer itself."""
        return self.linear

    def read(self) -> Tensor:
        """Return the layer's weight; a copy if it is stored transposed."""
        return read_matrix(self.linear).contiguous()

    def read_gradient(self) -> Tensor:
        """Return the gradient of the layer's weight."""
        return read_matrix_gradient(self.linear)

    def parameters(self) -> list[Tensor]:
        """Return the layer's weight."""
        return [self.linear.weight]

    def write(self, weight: Tensor) -> None:
        """Copy ``weight`` into the layer's weight."""
        read_matrix(self.linear).copy_(weight)

    def effects(self, change: Tensor) -> list[LinearEffect]:
        """Return the layer with the change of its weight."""
        return [LinearEffect(self.linear, None, change)]


class RowsView(LinearView):
    """Some rows (outputs) of a fused linear layer.

    Args:
        linear: The layer.
        rows: Indices of the rows, ``(n,)`` int64 ascending.
    """

    def __init__(self, linear: nn.Linear, rows: Tensor) -> None:
        super().__init__(linear)
        first, last = int(rows[0]), int(rows[-1])
        contiguous = last - first + 1 == len(rows)
        self.rows: slice | Tensor = slice(first, last + 1) if contiguous else rows

    def read(self) -> Tensor:
        """Return these rows of the layer's weight; a copy unless they are contiguous."""
        return read_matrix(self.linear)[self.rows].contiguous()

    def read_gradient(self) -> Tensor:
        """Return the gradient of these rows."""
        return read_matrix_gradient(self.linear)[self.rows]

    def write(self, weight: Tensor) -> None:
        """Copy ``weight`` into these rows."""
        read_matrix(self.linear)[self.rows] = weight.to(self.linear.weight)

    def outputs(self, tensor: Tensor) -> Tensor:
        """Return these rows' part of the layer's output."""
        return tensor[..., self.rows]

    def effects(self, change: Tensor) -> list[LinearEffect]:
        """Return the layer with the change of its weight, which is zero in other rows."""
        return [LinearEffect(self.linear, None, self.within(change.new_zeros(1), change))]

    def within(self, whole: Tensor, weight: Tensor) -> Tensor:
        """Return ``whole``, a matrix or a number, with ``weight`` in these rows.

        The result has the shape of the layer's matrix. Gradients flow to both arguments.
        """
        result = whole.expand(read_matrix(self.linear).shape).clone()
        result[self.rows] = weight
        return result


@dataclass(frozen=True, eq=False)
class LayerPart:
    """The part of one linear layer that belongs to structures.

    Attributes:
        linear: The layer.
        consumer: True if structures are its columns (inputs), False if its rows (outputs).
        index: ``(count, size)`` int64: the columns or rows of each structure.
    """

    linear: nn.Linear
    consumer: bool
    index: Tensor

    def gather(self, weight: Tensor) -> Tensor:
        """Return the part of an ``(outputs, inputs)`` matrix, ``(hidden, count, size)``."""
        return (weight if self.consumer else weight.T)[:, self.index]

    def scatter(self, values: Tensor) -> None:
        """Write values of the shape that `gather` returns."""
        weight = read_matrix(self.linear)
        target = weight if self.consumer else weight.T
        target[:, self.index.flatten()] = values.flatten(1).to(target)

    def narrowed(self, kept: Tensor) -> dict[str, Tensor]:
        """Return the layer's parameters, in its own storage, with only some of the structures.

        Args:
            kept: Indices of the structures, ``(n,)`` int64.

        Returns:
            New tensors by name, without parameters that do not depend on the structures.
        """
        weight, bias = read_matrix(self.linear), self.linear.bias
        # ascending, so that heads stay next to those of their group
        rows = self.index[kept.cpu()].flatten().sort().values.to(weight.device)
        narrow = as_matrix(self.linear, weight.index_select(int(self.consumer), rows))
        if self.consumer or bias is None:
            return {"weight": narrow}
        return {"weight": narrow, "bias": bias.detach()[rows]}


class StructuredView(WeightView):
    """Structures in several linear layers, see `StructureLayout`.

    Args:
        parts: Parts of the layers, consumers first, each with the same number of structures.
        alone: Whether only these parts depend on the number of structures.
    """

    def __init__(self, parts: Sequence[LayerPart], *, alone: bool = True) -> None:
        self._parts = parts
        self.alone = alone
        self._consumers = [part.linear for part in parts if part.consumer]
        self._without_bias = [linear.bias is None for linear in self._consumers]
        sizes = [part.index.shape[1] for part in parts]
        inner = sum(part.index.shape[1] for part in parts if part.consumer)
        count = len(parts[0].index)
        self._structures = StructureLayout(count, inner, sum(sizes), len(self._consumers))

    @property
    def gained_bias(self) -> bool:
        """Whether pruning added a bias to a consumer without one."""
        pairs = zip(self._consumers, self._without_bias, strict=True)
        return any(none and linear.bias is not None for linear, none in pairs)

    @property
    def parts(self) -> Sequence[LayerPart]:
        """The parts of the linear layers."""
        return self._parts

    @property
    def module(self) -> nn.Module:
        """The first consumer."""
        return self._consumers[0]

    def inputs(self, tensor: Tensor) -> Tensor:
        """Return the first consumer's input, ordered by structure."""
        columns = self._parts[0].index.flatten().to(tensor.device)
        return tensor[..., columns]

    @property
    def structures(self) -> StructureLayout:
        """Layout of the matrix."""
        return self._structures

    @property
    def size(self) -> tuple[int, int]:
        """Number of structures, and weights per structure."""
        hidden = read_matrix(self._consumers[0]).shape[0]
        return self._structures.count, hidden * self._structures.width

    def read(self) -> Tensor:
        """Return a new tensor, ``(hidden, count · width + biases)``."""
        return self._stack(read_matrix, _read_bias)

    def read_gradient(self) -> Tensor:
        """Return the gradient, which is zero for the biases."""
        return self._stack(
            read_matrix_gradient, lambda linear: torch.zeros_like(_read_bias(linear))
        )

    def parameters(self) -> list[Tensor]:
        """Return the weights of all parts."""
        return [part.linear.weight for part in self._parts]

    def write(self, weight: Tensor) -> None:
        """Write the weights of all parts, and the consumers' biases.

        A consumer without a bias gets one if it is not zero, and loses it again if it is.
        """
        sizes = [part.index.shape[1] for part in self._parts]
        bodies = torch.split(self._structures.bodies(weight), sizes, dim=2)
        for part, values in zip(self._parts, bodies, strict=True):
            part.scatter(values)
        biases = self._structures.bias(weight).T
        for linear, bias, none in zip(self._consumers, biases, self._without_bias, strict=True):
            _write_bias(linear, None if none and not bias.any() else bias)

    def unread(self) -> Tensor:
        """Return a mask of structures whose consumer columns are zeros, ``(count,)`` bool."""
        parts = [part for part in self._parts if part.consumer]
        read = [(read_matrix(p.linear) != 0).any(dim=0).cpu()[p.index].any(dim=1) for p in parts]
        return ~torch.stack(read).any(dim=0)

    def effects(self, change: Tensor) -> list[LinearEffect]:
        """Return the effects on the consumers, the only layers through which structures act."""
        sizes = [part.index.shape[1] for part in self._parts]
        bodies = torch.split(self._structures.bodies(change), sizes, dim=2)
        biases = iter(self._structures.bias(change).T)
        return [
            LinearEffect(part.linear, part.index.flatten(), values.flatten(1), next(biases))
            for part, values in zip(self._parts, bodies, strict=True)
            if part.consumer
        ]

    def _stack(
        self, weight: Callable[[nn.Linear], Tensor], bias: Callable[[nn.Linear], Tensor]
    ) -> Tensor:
        bodies = torch.cat([part.gather(weight(part.linear)) for part in self._parts], dim=2)
        biases = torch.stack([bias(linear) for linear in self._consumers], dim=1)
        return torch.cat([bodies.flatten(1), biases], dim=1)


def _write_bias(linear: nn.Linear, bias: Tensor | None) -> None:
    parameter = None
    if bias is not None:
        parameter = nn.Parameter(bias.detach().to(linear.weight, copy=True), requires_grad=False)
    linear.register_parameter("bias", parameter)


def _read_bias(linear: nn.Linear) -> Tensor:
    zeros = linear.weight.detach().new_zeros(read_matrix(linear).shape[0])
    return zeros if linear.bias is None else linear.bias.detach()
