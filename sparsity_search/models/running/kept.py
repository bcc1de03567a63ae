"""Statistics of a dense model's inputs in a folder, for other pruners, targets and runs.

They follow from the model, the text, the units and the kind of statistic, and so does the routing
of mixtures. Kinds are kept apart: a Hessian's diagonal is summed in another order than the norms,
and its last bits differ. Gradients are not kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from filelock import FileLock
from torch import Tensor

from sparsity_search.data import sequences
from sparsity_search.evidence.evidence import Routing
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.block_files import BlockFiles
from sparsity_search.models.io.loading import weights_digest
from sparsity_search.profiles.layout import Unit
from sparsity_search.utils import files as artefacts

#: Of the files, and of how statistics are gathered: raise it when a bit of them changes.
FORMAT = 1

_LOG = logging.getLogger(__name__)
_ROUTING = ("tokens", "saliency", "coactivation")


class Gathered(NamedTuple):
    """What one block's run told, by unit name."""

    block: int
    units: list[Unit]
    last: bool
    statistics: dict[str, InputStatistics]
    routing: dict[str, Routing]
    notes: tuple[str, ...]


#: Yields what is gathered in each block but those that it is given.
Gather = Callable[[Collection[int]], Iterator[Gathered]]


@dataclass(frozen=True)
class KeptStatistics:
    """Where statistics of one dense model are kept.

    Attributes:
        folder: Has a folder for each text, choice of units and kind of statistic.
        dense: What `weights_digest` tells of the model. While its weights are others, as pruned
            ones are, nothing is kept or reused.
    """

    folder: Path
    dense: str

    def reused(
        self, subject: PrunableModel, tokens: Tensor, statistic: Statistic, gather: Gather
    ) -> Iterator[Gathered]:
        """Yield what is known of each block, or else gathered now and kept.

        The text is run no further than to the last block that is not known. A block is gathered
        before those known before it are yielded, so that it does not see what a caller does to
        them.

        Args:
            subject: The model.
            tokens: The text, ``(n_sequences, length)`` int64.
            statistic: What is gathered.
            gather: How.
        """
        if weights_digest(subject.model) != self.dense:
            yield from gather(())
            return
        facts = {"model": self.dense, **_facts(subject, tokens, statistic)}
        files = _Folder(self.folder / artefacts.digest(facts), facts, subject)
        n_blocks, next_block = len(subject.blocks), 0
        for found in gather([block for block in range(n_blocks) if files.has(block)]):
            files.save(found)
            yield from map(files.load, range(next_block, found.block))
            yield found
            next_block = found.block + 1
        yield from map(files.load, range(next_block, n_blocks))


class _Folder:
    """What was gathered of each block of a model."""

    def __init__(self, path: Path, facts: Mapping[str, Any], subject: PrunableModel) -> None:
        self._path = path
        self._files = BlockFiles(path, FORMAT, facts)
        self._subject = subject

    def has(self, block: int) -> bool:
        return self._files.has(block)

    def save(self, found: Gathered) -> None:
        """Write a block, if that can be; what units share is written once.

        The folder is locked no longer than that, so nobody waits for another's pruning.
        """
        distinct = list({id(s): s for s in found.statistics.values()}.values())
        places = {id(s): place for place, s in enumerate(distinct)}
        facts = {
            "inputs": {unit: places[id(s)] for unit, s in found.statistics.items()},
            "statistics": [(int(s.statistic), s.n_tokens, str(s.device)) for s in distinct],
            "routing": list(found.routing),
            "notes": found.notes,
        }
        tensors = {
            f"{place}/{key}": tensor
            for place, statistics in enumerate(distinct)
            for key, tensor in statistics.tensors().items()
        }
        for unit, routing in found.routing.items():
            tensors |= {f"{unit}/{key}": getattr(routing, key) for key in _ROUTING}
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path / ".lock"):
                self._files.save(found.block, tensors, {"facts": json.dumps(facts)})
        except OSError as error:
            _LOG.warning("cannot keep statistics in %s: %s", self._path, error)

    def load(self, block: int) -> Gathered:
        tensors, metadata = self._files.load(block)
        facts = json.loads(metadata["facts"])
        distinct = [
            InputStatistics.from_tensors(
                _below(tensors, f"{place}/"), Statistic(statistic), n_tokens, device
            )
            for place, (statistic, n_tokens, device) in enumerate(facts["statistics"])
        ]
        return Gathered(
            block=block,
            units=self._subject.units_of(block),
            last=True,
            statistics={unit: distinct[place] for unit, place in facts["inputs"].items()},
            routing={unit: Routing(**_below(tensors, f"{unit}/")) for unit in facts["routing"]},
            notes=tuple(facts["notes"]),
        )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    return {name: tensors[whole] for name, whole in found.items()}


def _facts(subject: PrunableModel, tokens: Tensor, statistic: Statistic) -> dict[str, Any]:
    """Return what decides the statistics to the bit, besides the weights, flat."""
    config: Any = subject.model.config
    device = next(subject.model.parameters()).device
    return {
        "config": artefacts.digest(config.to_json_string()),
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
        "layout": subject.layout.digest,
        "units": subject.units,
        "text": sequences.digest(tokens),
        "statistic": statistic.name,
        "device": str(device),
        "processor": _processor(device),
        "offload": subject.offload is not None,
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
