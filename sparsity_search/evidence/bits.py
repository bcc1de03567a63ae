"""Masks over weights, where torch's own operations take a CPU ten times as long."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

#: Integers of a number's size, by bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHIFTS = torch.arange(8, dtype=torch.uint8)


def keep(tensor: Tensor, kept: Tensor) -> Tensor:
    """Return a tensor with zeros (not ``-0.0``) where a bool one of its shape is false."""
    integers = _INTEGERS[tensor.element_size()]
    return (tensor.view(integers) & kept.to(integers).neg_()).view(tensor.dtype)


def to_bits(mask: Tensor) -> Tensor:
    """Return a bool vector as bytes, the first entry in the lowest bit."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
    padded = nn.functional.pad(mask.byte(), (0, -len(mask) % 8)).view(-1, 8)
    return (padded << _SHIFTS.to(mask.device)).sum(dim=1, dtype=torch.uint8)


def fill(made: Tensor, bits: Tensor, values: Tensor) -> None:
    """Write values to the entries of a vector of zeros whose bits are set."""
    if made.device.type == "cpu":
        unpacked = np.unpackbits(bits.numpy(), count=len(made), bitorder="little")
        made.scatter_(0, torch.from_numpy(np.flatnonzero(unpacked.view(np.bool_))), values)
    else:
        kept = ((bits[:, None] >> _SHIFTS.to(bits.device)) & 1).flatten()[: len(made)]
        made.masked_scatter_(kept.bool(), values)
