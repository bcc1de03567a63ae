"""Forms of a trainable weight: how the weight that a module uses depends on what is trained.

They are parametrisations of torch (`torch.nn.utils.parametrize`): the module's own code reads a
weight, and gets the form's result. In each form the pruned entries stay exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Returns the form of a weight, given its parameter and which of its entries are kept.
MakeForm = Callable[[nn.Parameter, Tensor], nn.Module]


class Kept(nn.Module):
    """All kept entries are trained.

    Args:
        kept: Which entries are kept, bool, in the weight's shape.
    """

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where entries were pruned."""
        return weight * self.kept


class MaskedLowRank(nn.Module):
    """A low-rank change of the kept entries: ``W + (B A) * mask`` (MaskLoRA).

    Zimmer et al. 2024, PERP, arXiv 2312.15230, section 3.2. The change is zero at first.

    Args:
        kept: Which entries are kept, bool, ``(…, rows, columns)``.
        rank: Rank of the change.
        scale: Factor of the change; with the size of the weight's entries in it, one rate suits
            all models.
        generator: Draws the first ``A``.
    """

    kept: Tensor

    def __init__(self, kept: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        *batch, rows, columns = kept.shape
        rank = min(rank, rows, columns)
        first = torch.randn(*batch, rank, columns, generator=generator) / columns**0.5
        self.a = nn.Parameter(first.to(kept.device))
        self.b = nn.Parameter(torch.zeros(*batch, rows, rank, device=kept.device))
        self.scale = scale
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight.float() + self.scale * (self.b @ self.a) * self.kept


class Scaled(nn.Module):
    """One factor for each group of columns or rows, such as the columns of a channel or a head.

    Args:
        groups: Group of each entry along the axis, ``(n,)`` int64.
        axis: The axis of the stored weight.
    """

    groups: Tensor

    def __init__(self, groups: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("groups", groups, persistent=False)
        self.factors = nn.Parameter(torch.ones(int(groups.max()) + 1, device=groups.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight times its factors."""
        along = self.factors[self.groups]
        return weight.float() * (along if self.axis == 1 else along[:, None])
