"""One unit's pruned weights at a table of counts, in the least storage that its pruner allows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsity_search.errors import RunMismatchError, UnknownNameError
from sparsity_search.evidence.bits import fill, keep, to_bits
from sparsity_search.evidence.structures import Structures

#: Codes that half a byte holds.
_HALF = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Variants(ABC):
    """The pruned variants of one weight.

    Attributes:
        kind: How they are stored, for `variants_from_tensors`.
        counts: Numbers of zeros in the variants, strictly increasing.
        notes: What the pruner has to tell, e.g. ``"damping raised from 0.01 to 0.1"``.
    """

    kind: ClassVar[str]
    counts: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @abstractmethod
    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return a new tensor: ``dense`` with ``count`` weights removed, in its dtype.

        Raises:
            UnknownNameError: ``count`` is not in the table.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what has to be stored, by name."""

    def packed(self) -> Variants:
        """Return the same variants in the least memory."""
        return self

    def index(self, count: int) -> int:
        """Return the position of ``count`` in the table."""
        try:
            return self.counts.index(count)
        except ValueError:
            known = ", ".join(map(str, self.counts))
            raise UnknownNameError(f"no variant has {count} zeros: there are {known}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class UnchangedVariants(Variants):
    """The dense weight, with the zeros that it has."""

    kind: ClassVar[str] = "unchanged"

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return a copy of ``dense``."""
        self.index(count)
        return dense.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedVariants(Variants):
    """Nested masks over unchanged weights: one small integer a weight holds all of them.

    Attributes:
        codes: Of the weight's shape; the index of the first count that removes the weight,
            ``len(counts)`` if none does. uint8, or int16 for more than 255 counts.
    """

    kind: ClassVar[str] = "ranked"
    codes: Tensor

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with zeros where the code is at most the index of ``count``."""
        return keep(dense, self.codes.to(dense.device) > self.index(count))

    def tensors(self) -> dict[str, Tensor]:
        """Return the codes."""
        return {"codes": self.codes}

    def packed(self) -> Variants:
        """Return codes of half a byte, if these are few enough."""
        if type(self) is not RankedVariants or len(self.counts) >= _HALF:
            return self
        flat = self.codes.flatten()
        first = -(-len(flat) // 2)
        second = nn.functional.pad(flat[first:], (0, 2 * first - len(flat)))
        return PackedVariants(
            counts=self.counts, notes=self.notes, codes=flat[:first] | (second << 4)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedVariants(Variants):
    """What `RankedVariants` of fewer than 16 counts hold, in half the memory.

    Attributes:
        codes: ``(⌈weights / 2⌉,)`` uint8: codes of the first half of the weights in the lower
            bits, of the second half in the upper ones.
    """

    kind: ClassVar[str] = "packed"
    codes: Tensor

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with zeros where the code is at most the index of ``count``."""
        level, codes = self.index(count), self.codes.to(dense.device)
        kept = torch.empty(2, len(codes), dtype=torch.bool, device=dense.device)
        torch.gt(codes & (_HALF - 1), level, out=kept[0])
        torch.ge(codes, _HALF * (level + 1), out=kept[1])
        return keep(dense, kept.flatten()[: dense.numel()].view(dense.shape))

    def tensors(self) -> dict[str, Tensor]:
        """Return the codes."""
        return {"codes": self.codes}


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedVariants(RankedVariants):
    """Nested masks of N:M groups, each of which keeps as many weights as any other.

    A kept weight that is zero in the dense model becomes the least positive number, so that
    every group has exactly its zeros.
    """

    kind: ClassVar[str] = "grouped"

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with the zeros of ``count``, in every group alike."""
        removed = self.codes.to(dense.device) <= self.index(count)
        if not removed.any():  # a count that the zeros in the dense weight exceed
            return dense.clone()
        kept = dense.masked_fill(dense == 0, torch.finfo(dense.dtype).tiny)
        return kept.masked_fill_(removed, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredVariants(Variants):
    """The weights that are left, for pruners that also change what they keep.

    A bit for each weight says whether it is zero, so that a variant of sparsity ``s`` takes
    ``1 - s + 1/16`` of a dense copy in 16 bits.

    Attributes:
        bits: ``(len(counts), ⌈weights / 8⌉)`` uint8; the first weight is the lowest bit.
        starts: Where the values of each variant begin and end, ``(len(counts) + 1,)`` int64.
        values: All that are not zero, one variant after the other, in the model's dtype.
    """

    kind: ClassVar[str] = "stored"
    bits: Tensor
    starts: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, weights: Sequence[Tensor], counts: Sequence[int], notes: Sequence[str] = ()
    ) -> StoredVariants:
        """Return whole weights, one for each count, as they are stored."""
        kept = [weight.flatten() != 0 for weight in weights]
        values = [weight.flatten()[mask] for weight, mask in zip(weights, kept, strict=True)]
        sizes = torch.tensor([0, *map(len, values)])
        return cls(
            counts=tuple(counts),
            notes=tuple(notes),
            bits=torch.stack([to_bits(mask) for mask in kept]),
            starts=sizes.cumsum(0),
            values=torch.cat(values),
        )

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return the stored weight, on the device and in the dtype of ``dense``."""
        level = self.index(count)
        start, stop = self.starts[level : level + 2].tolist()
        made = torch.zeros(dense.numel(), dtype=dense.dtype, device=dense.device)
        fill(made, self.bits[level].to(dense.device), self.values[start:stop].to(dense))
        return made.view(dense.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return bits, starts and values."""
        return {"bits": self.bits, "starts": self.starts, "values": self.values}


@dataclass(frozen=True, kw_only=True, eq=False)
class StructuredVariants(Variants):
    """Structures removed, and what a pruner made of the consumer and its bias in return.

    Attributes:
        structures: Shape of the unit's matrix.
        removed: ``(len(counts), structures)`` bool.
        consumers: ``(len(counts), hidden, count · inner)``; None if consumers are as before.
        biases: ``(len(counts), hidden, biases)``; None if they are as before.
    """

    kind: ClassVar[str] = "structured"
    structures: Structures
    removed: Tensor
    consumers: Tensor | None = None
    biases: Tensor | None = None

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with the structures of ``count`` set to zero."""
        level, shape, made = self.index(count), self.structures, dense.clone()
        if self.consumers is not None:
            consumer = self.consumers[level].to(made)
            shape.bodies(made)[:, :, : shape.inner] = consumer.view(len(made), -1, shape.inner)
        shape.bodies(made)[:, self.removed[level].to(made.device)] = 0
        if self.biases is not None:
            shape.bias(made).copy_(self.biases[level])
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Return what was removed, the changed consumers and biases, and the shape."""
        shape = [self.structures.inner, self.structures.width, self.structures.biases]
        optional = {"consumers": self.consumers, "biases": self.biases}
        given = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {"removed": self.removed, "shape": torch.tensor(shape), **given}


def codes_of(order: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the codes of `RankedVariants` for weights removed in ``order``.

    >>> codes_of(torch.tensor([2, 0, 3, 1]), counts=[1, 3]).tolist()
    [1, 2, 0, 1]
    """
    dtype = torch.uint8 if len(counts) <= 255 else torch.int16
    codes = torch.full(order.shape, len(counts), dtype=dtype, device=order.device)
    for code, (start, stop) in enumerate(zip([0, *counts], counts, strict=False)):
        codes[order[start:stop]] = code
    return codes


def on_cpu(variants: Mapping[str, Variants]) -> dict[str, Variants]:
    """Return the same variants by name, stored in the CPU's memory."""
    return {
        name: variants_from_tensors(
            found.kind, found.counts, {k: t.cpu() for k, t in found.tensors().items()}, found.notes
        )
        for name, found in variants.items()
    }


def variants_from_tensors(
    kind: str, counts: Sequence[int], tensors: Mapping[str, Tensor], notes: Sequence[str] = ()
) -> Variants:
    """Return the variants that `Variants.tensors` gave.

    Raises:
        RunMismatchError: There is no such kind, or it is stored in other tensors.
    """
    table, told = tuple(counts), tuple(notes)
    match kind, sorted(tensors):
        case "unchanged", []:
            return UnchangedVariants(counts=table, notes=told)
        case "ranked", ["codes"]:
            return RankedVariants(counts=table, notes=told, codes=tensors["codes"])
        case "packed", ["codes"]:
            return PackedVariants(counts=table, notes=told, codes=tensors["codes"])
        case "grouped", ["codes"]:
            return GroupedVariants(counts=table, notes=told, codes=tensors["codes"])
        case "stored", ["bits", "starts", "values"]:
            return StoredVariants(counts=table, notes=told, **tensors)
        case "structured", ["biases" | "consumers" | "removed", *_]:
            inner, width, biases = tensors["shape"].tolist()
            removed = tensors["removed"]
            return StructuredVariants(
                counts=table,
                notes=told,
                structures=Structures(removed.shape[1], inner, width, biases),
                removed=removed,
                consumers=tensors.get("consumers"),
                biases=tensors.get("biases"),
            )
        case _, names:
            raise RunMismatchError(f"cannot read variants of kind {kind!r} from tensors {names}")
