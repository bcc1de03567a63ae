"""The bytes of a tensor, to hash or to store them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor on the CPU, in the order of its elements, as uint8.

    Bytes serve all number types; numpy has no bfloat16.
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
