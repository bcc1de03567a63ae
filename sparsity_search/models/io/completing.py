"""What a checkpoint takes over from its source: types, left tensors, configuration, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.evidence.masks import cast_nonzero
from sparsity_search.models.io.packed import dequantize_blocks
from sparsity_search.models.io.side_files import SIDE_FILES
from sparsity_search.models.io.source import (
    Source,
    list_stored,
    list_tensors,
    list_weight_files,
)
from sparsity_search.utils.files import write_json, write_text

_INDEX = "model.safetensors.index.json"
_QUANTIZATION = "quantization_config"


def complete_checkpoint(
    folder: Path, model: PreTrainedModel, source: Source, *, reshaped: bool
) -> None:
    """Give a saved checkpoint what its source has and the model has not.

    - Each tensor gets the source's number type. Weights that pruning left as they were get the
      source's bits, even if the model computes in a type that cannot hold them.
    - Tensors that are left alone are copied.
    - The configuration stays that of the source, if the model has the same shape.
    - Files of processors are copied.

    Args:
        folder: The checkpoint, as `save_pretrained` wrote it.
        model: The model that was saved.
        source: Where it comes from.
        reshaped: Whether the model has other blocks, widths or biases than the source.

    Raises:
        ModelError: The model has another shape, and something is left alone.
    """
    if reshaped:
        source.check_shape_is_kept("a change of shape")
    for path in list_weight_files(folder):
        _restore_types(path, source, keep_bits=not reshaped)
    files = [*list_weight_files(folder), *_copy_left_alone(folder, source, model.dtype)]
    if len(files) > 1:
        _write_index(folder, files)
    for pattern in SIDE_FILES:
        for file in source.folder.glob(pattern):
            target = folder / file.relative_to(source.folder)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
    _write_config(folder, source, model.dtype, reshaped)


def check_nothing_is_lost(
    folder: Path, model: PreTrainedModel, left_alone: Iterable[str] = ()
) -> None:
    """Check that the files of a checkpoint have every tensor of its model, in its shape.

    Args:
        folder: The checkpoint.
        model: The model that was saved.
        left_alone: Names of tensors that the files must have too.

    Raises:
        ModelError: A tensor is lost or has another shape.
    """
    stored = list_stored(model)
    saved = {name: tensor.shape for name, tensor in list_tensors(list_weight_files(folder))}
    there = {id(stored[name]) for name, shape in saved.items() if _has(stored, name, shape)}
    lost = [name for name, tensor in stored.items() if id(tensor) not in there]
    lost += [name for name in left_alone if name not in saved]
    if lost:
        raise ModelError(
            f"the checkpoint would lose {len(lost)} tensors of {type(model).__name__}, first "
            f"{lost[0]}: nothing is saved"
        )


def _has(stored: dict[str, Tensor], name: str, shape: torch.Size) -> bool:
    return name in stored and stored[name].shape == shape


def _restore_types(path: Path, source: Source, *, keep_bits: bool) -> None:
    """Rewrite a file of weights in the number types of the source.

    Args:
        path: The file.
        source: The source.
        keep_bits: Whether the tensors of equal name are the same, so that unchanged weights get
            the source's bits.
    """
    types = {
        name: dtype
        for name, tensor in list_tensors([path])
        if tensor.dtype.is_floating_point
        and (dtype := source.find_dtype(name)) not in (None, tensor.dtype)
    }
    if not types:
        return
    tensors = load_file(path)
    origins = {source.find(name): name for name in types} if keep_bits else {}
    originals = (
        name for name in origins if name and source.tensors[name].dtype == types[origins[name]]
    )
    for origin, original in source.read(originals):
        name = origins[origin]
        if original.shape == tensors[name].shape:
            tensors[name] = _restore_bits(tensors[name], original)
    cast = {name: cast_nonzero(tensors[name], dtype) for name, dtype in types.items()}
    save_file({**tensors, **cast}, path, metadata={"format": "pt"})


def _restore_bits(saved: Tensor, original: Tensor) -> Tensor:
    """Return a tensor in the type of the original, with the original's bits where unchanged."""
    again = original.to(saved.dtype)
    if torch.equal(again, saved):
        return original
    unchanged = (again == saved) & (saved != 0)
    return torch.where(unchanged, original, cast_nonzero(saved, original.dtype))


def _copy_left_alone(folder: Path, source: Source, dtype: torch.dtype) -> list[Path]:
    """Write the tensors that are left alone, a file for each of the source's, and unpack them."""
    groups: dict[Path, list[str]] = {}
    for name in source.left_alone:
        groups.setdefault(source.tensors[name].file, []).append(name)
    written = []
    for number, names in enumerate(groups.values()):
        tensors = dict(source.read(names))
        scales = {name: f"{name}_scale_inv" for name in names}
        for name, scale in source.read(s for s in scales.values() if s in source.tensors):
            weight = name.removesuffix("_scale_inv")
            plain = dequantize_blocks(tensors[weight], scale, source.block_size)
            tensors[weight] = plain.to(source.dtype or dtype)
        path = folder / f"left-alone-{number}.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
        written.append(path)
    return written


def _write_index(folder: Path, files: list[Path]) -> None:
    """Number the files of weights, and write the index that transformers reads."""
    places, size = {}, 0
    for number, path in enumerate(files, 1):
        target = folder / f"model-{number:05}-of-{len(files):05}.safetensors"
        path.rename(target)
        for name, tensor in list_tensors([target]):
            places[name] = target.name
            size += tensor.shape.numel() * tensor.dtype.itemsize
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / _INDEX, index)


def _write_config(folder: Path, source: Source, dtype: torch.dtype, reshaped: bool) -> None:
    """Write the source's configuration, or only the number type if the model has another shape."""
    file = folder / "config.json"
    if not reshaped:
        shutil.copyfile(source.folder / file.name, file)
    config = json.loads(file.read_text(encoding="utf-8"))
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    packing = [part.pop(_QUANTIZATION, None) for part in parts]
    if reshaped or any(packing) or source.dtype is None:
        name = str(source.dtype or dtype).removeprefix("torch.")
        write_text(file, json.dumps(_replace_types(config, name), indent=2) + "\n")


def _replace_types(config: Any, name: str) -> Any:
    """Return a configuration in which every number type is ``name``."""
    if not isinstance(config, dict):
        return config
    return {
        key: name if key in ("dtype", "torch_dtype") and value else _replace_types(value, name)
        for key, value in config.items()
    }
