"""A cache on disk of a dense model's statistics, for other pruners, targets and runs.

The statistics, and the routing of mixtures, depend on the model, the text, the units and the kind
of statistic. Each kind has its own entry: a Hessian's diagonal is summed in another order than
the norms, so its last bits differ. Gradients are not cached.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from sparsity_search.data import sequences
from sparsity_search.evidence.evidence import Routing
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.block_files import BlockFiles
from sparsity_search.models.io.identity import identify_model
from sparsity_search.profiles.layout import Unit
from sparsity_search.utils import files as artefacts

#: Version of the files and of the computation: increase it when a bit of the statistics changes.
FORMAT = 1

_LOG = logging.getLogger(__name__)
_ROUTING = ("tokens", "saliency", "coactivation")


class GatheredBlock(NamedTuple):
    """What is gathered from one run of a block, by unit name; see `Evidence`."""

    block: int
    units: list[Unit]
    last: bool
    statistics: dict[str, InputStatistics]
    routing: dict[str, Routing]
    notes: tuple[str, ...]


#: Yields the data gathered in each block, except in the given ones.
Gather = Callable[[Collection[int]], Iterator[GatheredBlock]]


@dataclass(frozen=True)
class StatisticsCache:
    """Cache of the statistics of one dense model.

    Attributes:
        folder: The folder; it has a subfolder for each text, choice of units and kind of
            statistic.
        identity: The `identify` of the dense model. While the model has other weights, e.g.
            pruned ones, or another configuration, the cache is neither read nor written.
    """

    folder: Path
    identity: Mapping[str, str]

    def reused(
        self, subject: PrunableModel, tokens: Tensor, statistic: Statistic, gather: Gather
    ) -> Iterator[GatheredBlock]:
        """Yield the cached data of each block; gather and store missing blocks.

        The text is run only up to the last missing block. A missing block is gathered before the
        cached blocks before it are yielded, so that changes which the caller makes to these do
        not affect it.

        Args:
            subject: The model.
            tokens: The text, ``(n_sequences, length)`` int64.
            statistic: Kind of statistic to gather.
            gather: Gathers the missing blocks.
        """
        if not identify_model(subject.model).items() <= self.identity.items():
            yield from gather(())
            return
        facts = {**self.identity, **_collect_facts(subject, tokens, statistic)}
        files = _Folder(self.folder / artefacts.compute_digest(facts), facts, subject)
        n_blocks, next_block = len(subject.blocks), 0
        for missing in gather([block for block in range(n_blocks) if files.has(block)]):
            files.save(missing)
            yield from map(files.load, range(next_block, missing.block))
            yield missing
            next_block = missing.block + 1
        yield from map(files.load, range(next_block, n_blocks))


class _Folder:
    """Files with the gathered data of each block of a model."""

    def __init__(self, path: Path, facts: Mapping[str, Any], subject: PrunableModel) -> None:
        self._path = path
        self._files = BlockFiles(path, FORMAT, facts)
        self._subject = subject

    def has(self, block: int) -> bool:
        return self._files.has(block)

    def save(self, gathered: GatheredBlock) -> None:
        """Write a block, with statistics that units share only once; warn if it fails.

        The folder is locked only while the block is written, so that other runs do not wait for
        the pruning in this one.
        """
        distinct = list({id(s): s for s in gathered.statistics.values()}.values())
        places = {id(s): place for place, s in enumerate(distinct)}
        facts = {
            "inputs": {unit: places[id(s)] for unit, s in gathered.statistics.items()},
            "statistics": [(int(s.statistic), s.n_tokens, str(s.device)) for s in distinct],
            "routing": list(gathered.routing),
            "notes": gathered.notes,
        }
        tensors = {
            f"{place}/{key}": tensor
            for place, statistics in enumerate(distinct)
            for key, tensor in statistics.tensors().items()
        }
        for unit, routing in gathered.routing.items():
            tensors |= {f"{unit}/{key}": getattr(routing, key) for key in _ROUTING}
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path / ".lock"):
                self._files.save(gathered.block, tensors, {"facts": json.dumps(facts)})
        except OSError as error:
            _LOG.warning("cannot store statistics in %s: %s", self._path, error)

    def load(self, block: int) -> GatheredBlock:
        tensors, metadata = self._files.load(block)
        facts = json.loads(metadata["facts"])
        distinct = [
            InputStatistics.from_tensors(
                _select(tensors, f"{place}/"), Statistic(statistic), n_tokens, device
            )
            for place, (statistic, n_tokens, device) in enumerate(facts["statistics"])
        ]
        return GatheredBlock(
            block=block,
            units=self._subject.units_of(block),
            last=True,
            statistics={unit: distinct[place] for unit, place in facts["inputs"].items()},
            routing={unit: Routing(**_select(tensors, f"{unit}/")) for unit in facts["routing"]},
            notes=tuple(facts["notes"]),
        )


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in own.items()}


def _collect_facts(subject: PrunableModel, tokens: Tensor, statistic: Statistic) -> dict[str, Any]:
    """Return all facts besides the identity on which the statistics depend, to the bit."""
    device = next(subject.model.parameters()).device
    return {
        "layout": subject.layout.digest,
        "units": subject.units,
        "text": sequences.compute_digest(tokens),
        "statistic": statistic.name,
        "device": str(device),
        "processor": _get_processor(device),
        "offload": subject.offload is not None,
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
    }


def _get_processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
