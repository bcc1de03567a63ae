"""Checksums of a checkpoint: what its tensors and its configuration were when it was saved.

They are in a file in the folder of the checkpoint. A profile alone says how many weights are
zero; it cannot tell whether the others are still the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.models.io.offload import get_offload
from sparsity_search.models.io.tensor_bytes import to_bytes
from sparsity_search.utils.files import compute_digest
from sparsity_search.utils.shapes import Shape
from sparsity_search.utils.versioned import VersionedJson


class _TensorShape(Shape):
    """A tensor in the file of checksums."""

    dtype: str
    shape: list[int]
    sha256: str


class _ChecksumsShape(Shape):
    """The file of checksums."""

    config: str
    tensors: dict[str, _TensorShape]


#: Name of the file in the folder of a checkpoint, and its contents.
CHECKSUMS = "checksums.json"
CHECKSUMS_JSON = VersionedJson("the checksums of a checkpoint", 1, _ChecksumsShape, ModelError)
#: Fields of a configuration that each saving may change.
_BOOKKEEPING = ("_name_or_path", "transformers_version")
#: How many faults a message names.
_NAMED = 3
#: Elements that are searched for NaN at once: the mask of a large tensor is large too.
_AT_ONCE = 2**26


def write_checksums(folder: Path) -> None:
    """Write the checksums of the checkpoint in a folder, next to its files.

    Files are read tensor by tensor; how tensors are spread over files does not count.
    """
    CHECKSUMS_JSON.write(folder / CHECKSUMS, _describe(folder))


def check_checkpoint(folder: Path) -> int | None:
    """Check that a checkpoint is as it was saved, if its checksums were kept.

    Returns:
        Number of tensors; None if there are no checksums.

    Raises:
        ModelError: A tensor or the configuration differs, a tensor is missing or new, or a file
            cannot be read; the message names the first ones.
    """
    if not (folder / CHECKSUMS).exists():
        return None
    stored, now = CHECKSUMS_JSON.read(folder / CHECKSUMS), _describe(folder)
    faults = list(_find_faults(stored["tensors"], now["tensors"]))
    if stored["config"] != now["config"]:
        faults.append("config.json differs")
    if faults:
        more = f", and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        named = ", ".join(faults[:_NAMED])
        raise ModelError(f"{folder} is not as it was saved: {named}{more}")
    return len(now["tensors"])


def find_nan(model: nn.Module) -> str | None:
    """Return the name of a tensor of a loaded model that holds NaN; None if none does."""
    offload = get_offload(model)
    for name, tensor in model.state_dict().items():
        parts = tensor.flatten().split(_AT_ONCE) if tensor.is_floating_point() else ()
        if any(part.isnan().any() for part in parts):
            return str(name)
        if offload is not None:
            offload.release()
    return None


def _describe(folder: Path) -> dict[str, Any]:
    """Return the checksums of a checkpoint as it is."""
    file = folder / "config.json"
    try:  # some configurations hold Infinity, which is no JSON
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=str)
        fields = {key: value for key, value in config.items() if key not in _BOOKKEEPING}
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return {
        "config": compute_digest(fields),
        "tensors": {name: _describe_tensor(tensor) for name, tensor in _read_tensors(folder)},
    }


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint, one in memory at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{path} cannot be read: {error}") from error


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(to_bytes(tensor).numpy().data).hexdigest(),
    }


def _find_faults(
    saved: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield what differs between the tensors that were saved and those that are there."""
    yield from (f"{name} is missing" for name in saved if name not in now)
    yield from (f"{name} is new" for name in now if name not in saved)
    for name in (name for name in saved if name in now):
        was, found = saved[name], now[name]
        for key in ("dtype", "shape"):
            if was[key] != found[key]:
                yield f"{name} differs ({key} {was[key]} → {found[key]})"
                break
        else:
            if was["sha256"] != found["sha256"]:
                yield f"{name} differs"
