"""A supernet on disk: one safetensors file a block, and a manifest with checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparsity_search.artefacts import atomic_file, check_fingerprint, digest, write_json
from sparsity_search.errors import ConfigError
from sparsity_search.variants import Variants, variants_from_tensors

FORMAT = 2
_MANIFEST = "manifest.json"


class SupernetFolder:
    """Finished blocks of a supernet.

    Args:
        path: The folder; made when the first block is saved.
        fingerprint: Everything that the variants depend on, flat.

    Raises:
        RunMismatchError: The folder holds a supernet with another fingerprint.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self._path = path
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": dict(fingerprint),
            "blocks": {},
        }
        stored = _read_manifest(path / _MANIFEST)
        if stored is not None:
            check_fingerprint(stored["fingerprint"], fingerprint, f"the supernet in {path}")
            self._manifest = stored

    def has(self, block: int) -> bool:
        """Return whether a block is there and whole; a corrupt one counts as absent."""
        entry = self._manifest["blocks"].get(str(block))
        file = self._file(block)
        return entry is not None and file.exists() and _checksum(file) == entry["sha256"]

    def complete(self, n_blocks: int) -> bool:
        """Return whether all blocks are there and whole."""
        return all(self.has(block) for block in range(n_blocks))

    def save(self, block: int, variants: Mapping[str, Variants]) -> None:
        """Write a block's variants: whole, or not at all."""
        tensors, facts = {}, {}
        for unit, found in variants.items():
            for key, tensor in found.tensors().items():
                tensors[f"{unit}/{key}"] = tensor.contiguous()
            facts[unit] = {"kind": found.kind, "counts": found.counts, "notes": found.notes}
        with atomic_file(self._file(block)) as temporary:
            save_file(tensors, temporary, metadata={"units": json.dumps(facts)})
        self._manifest["blocks"][str(block)] = {"sha256": _checksum(self._file(block))}
        write_json(self._path / _MANIFEST, self._manifest)

    def load(self, block: int) -> dict[str, Variants]:
        """Return a block's variants; their tensors are mapped from the file."""
        with safe_open(self._file(block), framework="pt") as file:
            facts = json.loads(file.metadata()["units"])
        tensors = load_file(self._file(block))
        result = {}
        for unit, fact in facts.items():
            own = {k.rpartition("/")[2]: t for k, t in tensors.items() if k.startswith(unit + "/")}
            result[unit] = variants_from_tensors(
                fact["kind"], tuple(fact["counts"]), own, notes=tuple(fact["notes"])
            )
        return result

    def _file(self, block: int) -> Path:
        return self._path / f"block-{block:04d}.safetensors"


@contextmanager
def shared(cache: Path, fingerprint: Mapping[str, Any]) -> Iterator[SupernetFolder]:
    """Yield the supernet of a fingerprint in a cache; other processes wait for it meanwhile.

    Raises:
        ConfigError: The cache cannot be written.
    """
    path = cache.expanduser() / digest(dict(fingerprint))
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


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest; None where it is absent, corrupt or of another format: start anew."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return manifest if manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
