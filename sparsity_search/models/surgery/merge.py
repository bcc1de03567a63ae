"""Layer collapse: removed blocks are merged into the kept block before them.

LaCo (Yang et al., arXiv 2402.11187). Norms, and biases of layers other than the consumers, belong
to no unit: those of the kept block stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.profiles.profile import SparsityProfile

#: Sequences per forward pass.
_BATCH = 8


def merge_weights(weight: Tensor, following: Sequence[Tensor]) -> Tensor:
    """Return ``θ_l + Σ_k (θ_{l+k} − θ_l)``, where ``θ_l`` is always the weight before merging.

    This is the formula of the paper. (The released code subtracts the weight merged so far, which
    leaves only the last block.)

    Args:
        weight: The kept unit's weight; not modified.
        following: Weights of the removed units after it, of the same shape.

    Returns:
        A new tensor, in float32 if anything is merged.

    >>> merge_weights(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([5.0])]).item()
    6.0
    """
    if not following:
        return weight.clone()
    # in this form, a single merged weight replaces the kept one without rounding
    total = torch.stack([other.float() for other in following]).sum(dim=0)
    return total - (len(following) - 1) * weight.float()


def merge_removed(subject: PrunableModel, profile: SparsityProfile) -> None:
    """Merge each run of removed units into the unit of the same role in the block before it.

    The weights are rewritten in place. A pruner empties the removed units afterwards. Units that
    are already empty add nothing, and removed units without a kept unit before them are lost.

    Args:
        subject: The dense model, with units of one structure each.
        profile: The profile of removed units.

    Raises:
        ConfigError: A unit holds more than one structure.
    """
    layout = subject.layout
    if layout.counts.max() > 1:
        raise ConfigError(f"only whole blocks or sublayers can be merged, not {subject.units}")
    runs: dict[str, list[str]] = {}
    following: dict[str, tuple[str, int]] = {}  # by role: the kept unit, and the last block seen
    for unit, removed in zip(layout, profile.removed, strict=True):
        kept, block = following.get(unit.role, (unit.name, unit.block - 1))
        if not removed:
            following[unit.role] = unit.name, unit.block
            runs[unit.name] = []
        elif kept in runs and unit.block == block + 1:
            following[unit.role] = kept, unit.block
            runs[kept] += [] if unit.zeros else [unit.name]
    for name, run in runs.items():
        if run:
            _merge(subject, name, run)


@dataclass(frozen=True, kw_only=True)
class CollapsePlan:
    """Settings of `collapse`; the defaults are those published for a model of 40 blocks.

    Args:
        run: Number of blocks that are merged into one.
        interval: Distance in blocks, downwards, to the start of the next run after a merge.
        threshold: Cosine with the dense model's last hidden states that a merge has to exceed.
        lowest: Index of the first block into which others may be merged.

    Raises:
        ConfigError: A setting is out of range.
    """

    run: int = 7
    interval: int = 1
    threshold: float = 0.45
    lowest: int = 0

    def __post_init__(self) -> None:
        if self.run < 2 or self.interval < 1 or self.lowest < 0:
            raise ConfigError("run must be at least 2, interval at least 1, lowest at least 0")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be a cosine in [-1, 1], not {self.threshold}")


def collapse(subject: PrunableModel, tokens: Tensor, plan: CollapsePlan) -> SparsityProfile:
    """Collapse the model in place, from the top down, and return the profile of removed blocks.

    A run of blocks is merged into its first block if the last hidden states stay similar to those
    of the dense model. Later merges may include merged blocks. The threshold alone determines how
    much is removed.

    Args:
        subject: The dense model with blocks as units, none excluded.
        tokens: A few short sequences, ``(n_sequences, length)`` int64.
        plan: Settings.

    Raises:
        ConfigError: The units are not all blocks.
    """
    layout = subject.layout
    if subject.units != "blocks" or len(layout) != len(subject.blocks):
        raise ConfigError("a collapse needs --units blocks without --exclude")
    dense = _compute_last_hidden(subject.model, tokens)
    alive = [unit.name for unit in layout if not unit.zeros]
    place = len(alive) - plan.run
    while place >= plan.lowest:
        first, *others = alive[place : place + plan.run]
        before = {name: subject.views[name].read().clone() for name in (first, *others)}
        _merge(subject, first, others)
        for name in others:
            subject.views[name].write(torch.zeros_like(before[name]))
        if (
            compute_mean_similarity(dense, _compute_last_hidden(subject.model, tokens))
            > plan.threshold
        ):
            alive[place + 1 : place + plan.run] = []
            place -= plan.interval
        else:
            for name, weight in before.items():
                subject.views[name].write(weight)
            place -= 1
        place = min(place, len(alive) - plan.run)
    return subject.zeros()


def compute_mean_similarity(dense: Tensor, pruned: Tensor) -> float:
    """Return the mean cosine of sequences' hidden states, each sequence as one long vector.

    Args:
        dense: Hidden states of the dense model, ``(n_sequences, length, hidden)`` float32.
        pruned: Hidden states of the pruned model, of the same shape.
    """
    cosines = nn.functional.cosine_similarity(dense.flatten(1), pruned.flatten(1), dim=1)
    return float(cosines.mean())


@torch.inference_mode()
def _compute_last_hidden(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the last hidden states of all sequences in float32, on the CPU."""
    batches = torch.split(tokens, _BATCH)
    return torch.cat([compute_last_hidden(model, batch).float().cpu() for batch in batches])


def _merge(subject: PrunableModel, name: str, others: Sequence[str]) -> None:
    view = subject.views[name]
    view.write(merge_weights(view.read(), [subject.views[other].read() for other in others]))
