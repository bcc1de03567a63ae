"""A supernet on disk: one safetensors file per block, and a manifest with checksums."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.variants import Variants, variants_from_tensors
from sparsity_search.models.io.block_files import BlockFiles
from sparsity_search.utils.files import check_fingerprint, compute_digest

FORMAT = 2


class SupernetFolder:
    """Folder with the finished blocks of a supernet.

    Args:
        path: The folder; created when the first block is saved.
        fingerprint: All facts that the variants depend on, as a flat mapping.

    Raises:
        RunMismatchError: The folder holds a supernet with another fingerprint.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self._files = BlockFiles(path, FORMAT, fingerprint)
        stored = self._files.stored()
        if stored is not None:
            check_fingerprint(stored, fingerprint, f"the supernet in {path}")

    def has(self, block: int) -> bool:
        """Return whether a block is stored completely; a corrupt block counts as absent."""
        return self._files.has(block)

    def complete(self, n_blocks: int) -> bool:
        """Return whether all blocks are stored completely."""
        return all(self.has(block) for block in range(n_blocks))

    def save(self, block: int, variants: Mapping[str, Variants]) -> None:
        """Write a block's variants completely or not at all."""
        tensors, facts = {}, {}
        for unit, own in variants.items():
            for key, tensor in own.tensors().items():
                tensors[f"{unit}/{key}"] = tensor.contiguous()
            facts[unit] = {"kind": own.kind, "counts": own.counts, "notes": own.notes}
        self._files.save(block, tensors, {"units": json.dumps(facts)})

    def load(self, block: int) -> dict[str, Variants]:
        """Return a block's variants."""
        tensors, metadata = self._files.load(block)
        result = {}
        for unit, fact in json.loads(metadata["units"]).items():
            own = {k.rpartition("/")[2]: t for k, t in tensors.items() if k.startswith(unit + "/")}
            result[unit] = variants_from_tensors(
                fact["kind"], tuple(fact["counts"]), own, notes=tuple(fact["notes"])
            )
        return result


@contextmanager
def lock_shared_folder(cache: Path, fingerprint: Mapping[str, Any]) -> Iterator[SupernetFolder]:
    """Lock and yield the folder of a fingerprint in a cache; other processes wait for it.

    Raises:
        ConfigError: The cache cannot be written.
    """
    path = cache.expanduser() / compute_digest(dict(fingerprint))
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        lock.acquire()
    except OSError as error:
        raise ConfigError(f"supernet.cache {cache}: {error.strerror}") from error
    try:
        yield SupernetFolder(path, fingerprint)
    finally:
        lock.release()
