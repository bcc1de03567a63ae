"""Models of GGUF files, kept in the cache folder as checkpoints that load in seconds.

A kept model is that of the same file, number type and libraries, so it has the same bits. It
counts as absent if a file of it is damaged or missing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from sparsity_search.errors import ConfigError, ModelError, SparsitySearchError
from sparsity_search.models.io.classes import build_empty, find_class
from sparsity_search.models.io.completing import check_nothing_is_lost
from sparsity_search.models.io.identity import compute_config_digest, compute_tokenizer_digest
from sparsity_search.models.io.locating import shorten
from sparsity_search.utils.cache import get_cache_folder
from sparsity_search.utils.files import atomic_folder, compute_digest, compute_file_digest
from sparsity_search.utils.shapes import Shape
from sparsity_search.utils.versioned import VersionedJson

_LOG = logging.getLogger(__name__)
#: Version of what is kept; it increases whenever the same file would be kept in another way.
_FORMAT = 1
#: Packages that convert a file.
_PACKAGES = ("transformers", "tokenizers", "torch", "gguf")
#: Files next to a GGUF file that transformers prefers to the tokenizer in it.
_TOKENIZER_FILES = (
    *("*token*.json", "*.model", "vocab.*", "merges.txt", "tekken.json"),
    *("chat_template.*", "additional_chat_templates/*"),
)


class _ManifestShape(Shape):
    """The manifest: what was converted, and the checksum of each file."""

    fingerprint: dict[str, Any]
    files: dict[str, str]


_MANIFEST = "manifest.json"
_MANIFEST_JSON = VersionedJson(
    "the manifest of a converted model", _FORMAT, _ManifestShape, ModelError
)


class ConvertedModel:
    """Place in the cache folder for the model of a GGUF file in one number type.

    Args:
        gguf: The file.
        dtype: The number type.
    """

    def __init__(self, gguf: Path, dtype: torch.dtype) -> None:
        beside = {file for pattern in _TOKENIZER_FILES for file in gguf.parent.glob(pattern)}
        self._fingerprint = {
            "file": compute_file_digest(gguf),
            "beside": _describe(gguf.parent, beside),
            "dtype": str(dtype),
            "packages": {name: version(name) for name in _PACKAGES},
        }
        key = compute_digest({"format": _FORMAT, **self._fingerprint})
        self._folder = get_cache_folder() / "gguf" / key

    def find(self) -> Path | None:
        """Return the folder of the checkpoint; None if there is no whole one."""
        try:
            manifest = _MANIFEST_JSON.read(self._folder / _MANIFEST)
            now = {name: compute_file_digest(self._folder / name) for name in manifest["files"]}
        except (OSError, SparsitySearchError):
            return None
        same = (manifest["fingerprint"], manifest["files"]) == (self._fingerprint, now)
        return self._folder if same else None

    def keep(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Keep a model and its tokenizer; what cannot be kept is told in one line.

        Args:
            model: The model of the file, as it was read, on the CPU.
            tokenizer: Its tokenizer.
        """
        try:
            with atomic_folder(self._folder) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                _check_equal(folder, model, tokenizer)
                manifest = {
                    "fingerprint": self._fingerprint,
                    "files": _describe(folder, folder.rglob("*")),
                }
                _MANIFEST_JSON.write(folder / _MANIFEST, manifest)
        except ConfigError:  # another process keeps it
            return
        except Exception as error:  # of the machine, or of the libraries, which raise many kinds
            _LOG.warning(
                "the converted model is not kept in %s, so that each command converts it anew: %s",
                get_cache_folder(),
                shorten(error),
            )


def _describe(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the checksum of each file among paths within a folder, by its name there."""
    files = sorted(path for path in paths if path.is_file())
    return {str(file.relative_to(folder)): compute_file_digest(file) for file in files}


def _check_equal(folder: Path, model: PreTrainedModel, tokenizer: Any) -> None:
    """Check that a saved model has the tensors, the configuration and the tokenizer of its source.

    Raises:
        ModelError: It has not.
    """
    check_nothing_is_lost(folder, model)
    config = AutoConfig.from_pretrained(folder)
    empty = build_empty(find_class(config), config, trust_remote_code=False)
    if compute_config_digest(empty.config) != compute_config_digest(model.config):
        raise ModelError("its configuration changes when it is saved")
    again = AutoTokenizer.from_pretrained(folder)
    digests = (compute_tokenizer_digest(each) for each in (again, tokenizer))
    if len(set(digests)) > 1 or again.chat_template != tokenizer.chat_template:
        raise ModelError("its tokenizer changes when it is saved")
