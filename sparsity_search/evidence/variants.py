"""Pruned weights of one unit at several counts, stored as compactly as its pruner allows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, RunMismatchError, UnknownNameError
from sparsity_search.evidence.masks import apply_mask, pack_mask, write_at_bits
from sparsity_search.evidence.structures import StructureLayout

#: Number of codes that fit in half a byte.
_HALF = 16
#: Most codes in two bytes.
_MOST_CODES = 2**15 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Variants(ABC):
    """The pruned variants of one weight.

    Attributes:
        kind: Storage format, for `variants_from_tensors`.
        counts: Number of zeros in each variant, strictly increasing.
        notes: Messages of the pruner, e.g. ``"damping raised from 0.01 to 0.1"``.
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
        """Return the tensors to store, by name."""

    def packed(self) -> Variants:
        """Return the same variants in as little memory as possible."""
        return self

    def index(self, count: int) -> int:
        """Return the position of ``count`` in the table."""
        try:
            return self.counts.index(count)
        except ValueError:
            available = ", ".join(map(str, self.counts))
            raise UnknownNameError(
                f"no variant has {count} zeros: available are {available}"
            ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class UnchangedVariants(Variants):
    """The dense weight, unchanged."""

    kind: ClassVar[str] = "unchanged"

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return a copy of ``dense``."""
        self.index(count)
        return dense.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return no tensors."""
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedVariants(Variants):
    """Nested masks over unchanged weights, stored as one small integer per weight.

    Attributes:
        codes: Index of the first count that removes each weight, ``len(counts)`` if none does; of
            the weight's shape, uint8, or int16 for more than 255 counts.
    """

    kind: ClassVar[str] = "ranked"
    codes: Tensor

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with zeros where the code is at most the index of ``count``."""
        return apply_mask(dense, self.codes.to(dense.device) > self.index(count))

    def tensors(self) -> dict[str, Tensor]:
        """Return the codes."""
        return {"codes": self.codes}

    def packed(self) -> Variants:
        """Return variants with codes of half a byte, if there are fewer than 16 counts."""
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
    """The masks of `RankedVariants` with fewer than 16 counts, in half the memory.

    Attributes:
        codes: ``(⌈weights / 2⌉,)`` uint8: the codes of the first half of the weights in the
            lower bits, those of the second half in the upper bits.
    """

    kind: ClassVar[str] = "packed"
    codes: Tensor

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with zeros where the code is at most the index of ``count``."""
        level, codes = self.index(count), self.codes.to(dense.device)
        mask = torch.empty(2, len(codes), dtype=torch.bool, device=dense.device)
        torch.gt(codes & (_HALF - 1), level, out=mask[0])
        torch.ge(codes, _HALF * (level + 1), out=mask[1])
        return apply_mask(dense, mask.flatten()[: dense.numel()].view(dense.shape))

    def tensors(self) -> dict[str, Tensor]:
        """Return the codes."""
        return {"codes": self.codes}


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedVariants(RankedVariants):
    """Nested N:M masks, which keep the same number of weights in every group.

    A kept weight that is zero in the dense model becomes the smallest positive number, so that
    every group has exactly the zeros of its pattern.
    """

    kind: ClassVar[str] = "grouped"

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with ``count`` zeros, the same number in every group."""
        removed = self.codes.to(dense.device) <= self.index(count)
        if not removed.any():  # the dense weight has more zeros than that
            return dense.clone()
        kept = dense.masked_fill(dense == 0, torch.finfo(dense.dtype).tiny)
        return kept.masked_fill_(removed, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredVariants(Variants):
    """Remaining weights of each variant, for pruners that also change the weights they keep.

    One bit per weight marks the zeros, so a variant of sparsity ``s`` takes ``1 - s + 1/16`` of a
    dense copy in 16 bits.

    Attributes:
        bits: ``(len(counts), ⌈weights / 8⌉)`` uint8; the first weight is the lowest bit.
        starts: Offsets of each variant in ``values``, ``(len(counts) + 1,)`` int64.
        values: Non-zero weights of one variant after the other, in the model's dtype.
    """

    kind: ClassVar[str] = "stored"
    bits: Tensor
    starts: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, weights: Sequence[Tensor], counts: Sequence[int], notes: Sequence[str] = ()
    ) -> StoredVariants:
        """Return the stored form of whole weights, one for each count."""
        masks = [weight.flatten() != 0 for weight in weights]
        values = [weight.flatten()[mask] for weight, mask in zip(weights, masks, strict=True)]
        sizes = torch.tensor([0, *map(len, values)])
        return cls(
            counts=tuple(counts),
            notes=tuple(notes),
            bits=torch.stack([pack_mask(mask) for mask in masks]),
            starts=sizes.cumsum(0),
            values=torch.cat(values),
        )

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return the stored weight, on the device and in the dtype of ``dense``."""
        level = self.index(count)
        start, stop = self.starts[level : level + 2].tolist()
        weight = torch.zeros(dense.numel(), dtype=dense.dtype, device=dense.device)
        write_at_bits(weight, self.bits[level].to(dense.device), self.values[start:stop].to(dense))
        return weight.view(dense.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return the bits, starts and values."""
        return {"bits": self.bits, "starts": self.starts, "values": self.values}


@dataclass(frozen=True, kw_only=True, eq=False)
class StructuredVariants(Variants):
    """Removed structures, and the consumers and biases that a pruner changed to compensate.

    Attributes:
        structures: Layout of the unit's matrix.
        removed: ``(len(counts), structures)`` bool, True for removed structures.
        consumers: ``(len(counts), hidden, count · inner)``; None if unchanged.
        biases: ``(len(counts), hidden, biases)``; None if unchanged.
    """

    kind: ClassVar[str] = "structured"
    structures: StructureLayout
    removed: Tensor
    consumers: Tensor | None = None
    biases: Tensor | None = None

    def at(self, dense: Tensor, count: int) -> Tensor:
        """Return ``dense`` with the structures of ``count`` set to zero."""
        level, layout, weight = self.index(count), self.structures, dense.clone()
        if self.consumers is not None:
            consumer = self.consumers[level].to(weight)
            bodies = layout.bodies(weight)
            bodies[:, :, : layout.inner] = consumer.view(len(weight), -1, layout.inner)
        layout.bodies(weight)[:, self.removed[level].to(weight.device)] = 0
        if self.biases is not None:
            layout.bias(weight).copy_(self.biases[level])
        return weight

    def tensors(self) -> dict[str, Tensor]:
        """Return the mask of removed structures, changed consumers and biases, and the layout."""
        shape = [self.structures.inner, self.structures.width, self.structures.biases]
        optional = {"consumers": self.consumers, "biases": self.biases}
        given = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {"removed": self.removed, "shape": torch.tensor(shape), **given}


def encode_order(order: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the codes of `RankedVariants` for weights removed in ``order``.

    Raises:
        ConfigError: There are too many counts.

    >>> encode_order(torch.tensor([2, 0, 3, 1]), counts=[1, 3]).tolist()
    [1, 2, 0, 1]
    """
    if len(counts) > _MOST_CODES:
        raise ConfigError(f"a unit has {len(counts)} levels, more than {_MOST_CODES}: widen them")
    dtype = torch.uint8 if len(counts) <= 255 else torch.int16
    codes = torch.full(order.shape, len(counts), dtype=dtype, device=order.device)
    for code, (start, stop) in enumerate(zip([0, *counts], counts, strict=False)):
        codes[order[start:stop]] = code
    return codes


def move_to_cpu(variants: Mapping[str, Variants]) -> dict[str, Variants]:
    """Return the same variants by name, with all tensors on the CPU."""
    return {
        name: variants_from_tensors(
            own.kind, own.counts, {k: t.cpu() for k, t in own.tensors().items()}, own.notes
        )
        for name, own in variants.items()
    }


def variants_from_tensors(
    kind: str, counts: Sequence[int], tensors: Mapping[str, Tensor], notes: Sequence[str] = ()
) -> Variants:
    """Return the variants whose `Variants.tensors` these are.

    Raises:
        RunMismatchError: The kind does not exist, or is stored in other tensors.
    """
    table, messages = tuple(counts), tuple(notes)
    match kind, sorted(tensors):
        case "unchanged", []:
            return UnchangedVariants(counts=table, notes=messages)
        case "ranked", ["codes"]:
            return RankedVariants(counts=table, notes=messages, codes=tensors["codes"])
        case "packed", ["codes"]:
            return PackedVariants(counts=table, notes=messages, codes=tensors["codes"])
        case "grouped", ["codes"]:
            return GroupedVariants(counts=table, notes=messages, codes=tensors["codes"])
        case "stored", ["bits", "starts", "values"]:
            return StoredVariants(counts=table, notes=messages, **tensors)
        case "structured", ["biases" | "consumers" | "removed", *_]:
            inner, width, biases = tensors["shape"].tolist()
            removed = tensors["removed"]
            return StructuredVariants(
                counts=table,
                notes=messages,
                structures=StructureLayout(removed.shape[1], inner, width, biases),
                removed=removed,
                consumers=tensors.get("consumers"),
                biases=tensors.get("biases"),
            )
        case _, names:
            raise RunMismatchError(f"cannot read variants of kind {kind!r} from tensors {names}")
