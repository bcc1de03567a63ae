"""Latency on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.measure import Measure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.surgery.materialise import MaterialisedShape, materialise
from sparsity_search.spaces.prices import PriceCurve


@dataclass(frozen=True, kw_only=True)
class LatencyMeasure(Measure):
    """Seconds of a forward pass on this machine, measured on smaller models.

    The first blocks of the model are materialised with all units of a role equally narrow, and
    run alternately with the dense blocks. The median saving is shared equally among the blocks.
    Removing all items saves as much as leaving one: no architecture has a block without any.

    Args:
        length: Tokens of a sequence.
        batch: Number of sequences that run at once.
        points: Number of widths timed for each role, besides the dense one.
        repeats: Number of timed passes for each width.
        blocks: Number of blocks that run.
    """

    length: int = 512
    batch: int = 1
    points: int = 8
    repeats: int = 7
    blocks: int = 4

    def __post_init__(self) -> None:
        for name in ("length", "batch", "points", "repeats", "blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        """Return the curve of each unit's role; all units of a role must have one size."""
        whole = PrunableModel(subject.model, units=subject.units, roles=subject.roles)
        sizes = {(unit.role, unit.count, unit.cost) for unit in whole.layout}
        counts = {role: count for role, count, _ in sizes}
        if len(counts) < len(sizes):
            raise ConfigError("latency is measured for all blocks alike, and these differ in size")
        curves = {role: self._curve(whole, role, count) for role, count in counts.items()}
        return [curves[unit.role] for unit in subject.layout]

    def _curve(self, subject: PrunableModel, role: str, count: int) -> PriceCurve:
        removed = np.unique(np.linspace(0, count - 1, self.points + 1).round().astype(int))[1:]
        saved = [self._saved(subject, role, int(number)) for number in removed]
        last = saved[-1] if saved else 0.0
        return PriceCurve((0, *map(int, removed), count), (0.0, *saved, last))

    def _saved(self, subject: PrunableModel, role: str, removed: int) -> float:
        """Return the seconds that one block saves with fewer items of a role."""
        n_blocks = min(self.blocks, len(subject.blocks))
        models = [
            materialise(subject, _build_shape(subject, n_blocks, less))
            for less in ({}, {role: removed})
        ]
        device = next(subject.model.parameters()).device
        tokens = torch.zeros(self.batch, self.length, dtype=torch.int64, device=device)
        differences = []
        for repeat in range(self.repeats + 1):
            dense, smaller = (_measure_seconds(model, tokens) for model in models)
            if repeat:  # the first one warms up
                differences.append(dense - smaller)
        return median(differences) / n_blocks


def _build_shape(
    subject: PrunableModel, n_blocks: int, removed: Mapping[str, int]
) -> MaterialisedShape:
    """Return the shape of the first blocks without some items of each unit, by role."""
    kept = {
        unit.name: torch.arange(unit.count - removed.get(unit.role, 0))
        for unit in subject.layout
        if unit.block < n_blocks
    }
    return MaterialisedShape(blocks=tuple(range(n_blocks)), kept=kept, padding=0, per_block=False)


@torch.inference_mode()
def _measure_seconds(model: PreTrainedModel, tokens: Tensor) -> float:
    """Return the time of one pass of the decoder, without the head."""
    started = time.perf_counter()
    compute_last_hidden(model, tokens).sum().item()
    return time.perf_counter() - started
