"""Tensors of decoder blocks on disk: one safetensors file per block, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsity_search.errors import RunMismatchError, SparsitySearchError
from sparsity_search.utils.files import (
    atomic_file,
    compute_file_digest,
    format_canonical_json,
)
from sparsity_search.utils.shapes import Shape
from sparsity_search.utils.versioned import VersionedJson

_MANIFEST = "manifest.json"


class _ManifestShape(Shape):
    """The manifest: what the blocks were made from, and the checksum of each."""

    fingerprint: dict[str, Any]
    blocks: dict[str, dict[str, str]]


class BlockFiles:
    """Folder of finished blocks, each complete or absent.

    A block counts as absent if it is corrupt, or of another version or fingerprint.

    Args:
        path: The folder; created when the first block is saved.
        version: Version of the files' contents.
        fingerprint: All facts that the contents depend on, as a flat mapping.
    """

    def __init__(self, path: Path, version: int, fingerprint: Mapping[str, Any]) -> None:
        self._path = path
        self._format = VersionedJson("a manifest", version, _ManifestShape, RunMismatchError)
        # in the form in which JSON is read: tuples become lists
        self._fingerprint = json.loads(format_canonical_json(dict(fingerprint)))

    def stored(self) -> dict[str, Any] | None:
        """Return the fingerprint of the stored files; None if there are none."""
        manifest = self._manifest()
        return None if manifest is None else manifest["fingerprint"]

    def has(self, block: int) -> bool:
        """Return whether a block is stored completely."""
        entry, file = self._entries().get(str(block)), self._file(block)
        return entry is not None and file.exists() and compute_file_digest(file) == entry["sha256"]

    def save(self, block: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write a block completely or not at all."""
        file = self._file(block)
        with atomic_file(file) as temporary:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        entries = {**self._entries(), str(block): {"sha256": compute_file_digest(file)}}
        manifest = {"fingerprint": self._fingerprint, "blocks": entries}
        self._format.write(self._path / _MANIFEST, manifest)

    def load(self, block: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return a block's tensors and its metadata."""
        with safe_open(self._file(block), framework="pt") as file:
            metadata = file.metadata()
        return load_file(self._file(block)), metadata

    def _entries(self) -> dict[str, Any]:
        manifest = self._manifest()
        if manifest is None or manifest["fingerprint"] != self._fingerprint:
            return {}
        entries: dict[str, Any] = manifest["blocks"]
        return entries

    def _manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None where it is absent, corrupt or of another version."""
        try:
            return self._format.read(self._path / _MANIFEST)
        except SparsitySearchError:
            return None

    def _file(self, block: int) -> Path:
        return self._path / f"block-{block:04d}.safetensors"
