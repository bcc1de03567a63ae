"""The checkpoint that a model was loaded from: its tensors, their number types, other files."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sparsity_search.errors import ModelError
from sparsity_search.models.io.packed import Packing, find_plain_name
from sparsity_search.utils.reading import read_json

#: Files of weights, in the order in which transformers looks for them; indices list several.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: Buffers that older checkpoints hold, and that their classes compute.
_COMPUTED = re.compile(r"(inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias)$")
#: Tables of rotary embeddings in GGUF files, which classes compute.
_ROPE = re.compile(r"rope_|rot_embd")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class SourceTensor:
    """A tensor in a file.

    Attributes:
        file: The file.
        dtype: Its number type.
        shape: Its shape.
    """

    file: Path
    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True)
class Source:
    """The folder of a checkpoint, and what a model that was loaded from it leaves out.

    Attributes:
        folder: The folder.
        tensors: Its tensors by name.
        left_alone: Names of those that no parameter of the model holds, such as the layers of
            multi-token prediction. A pruned checkpoint gets them unchanged.
        dtype: Number type of most weights, in which pruned ones are saved; None to save all
            weights in the model's.
        prefix: Prefix that its names may have or lack: the name of the model without its head.
        block_size: Rows and columns of a packed matrix with one scale.
    """

    folder: Path
    tensors: Mapping[str, SourceTensor]
    left_alone: tuple[str, ...] = ()
    dtype: torch.dtype | None = None
    prefix: str = ""
    block_size: tuple[int, int] = (1, 1)

    @property
    def n_left_alone(self) -> int:
        """Number of weights in the tensors that are left alone."""
        return sum(self.tensors[name].shape.numel() for name in self.left_alone)

    def find(self, name: str) -> str | None:
        """Return the name that a tensor of a saved checkpoint has in the source, if any."""
        names = (name, name.removeprefix(self.prefix), f"{self.prefix}{name}")
        return next((name for name in names if name in self.tensors), None)

    def find_dtype(self, name: str) -> torch.dtype | None:
        """Return the number type for a tensor of a saved checkpoint; None for the model's own."""
        origin = self.find(name)
        own = None if origin is None else self.tensors[origin].dtype
        return own if self.dtype is not None and own in _FLOATS else self.dtype

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors with their names, on the CPU, file by file."""
        files: dict[Path, list[str]] = {}
        for name in names:
            files.setdefault(self.tensors[name].file, []).append(name)
        for path, own in files.items():
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    yield from ((name, file.get_tensor(name)) for name in own)
            else:
                tensors = _load_pickled(path)
                yield from ((name, tensors[name]) for name in own)

    def check_shape_is_kept(self, what: str) -> None:
        """Check that nothing is left alone, which would not fit a model of another shape.

        Args:
            what: What changes the shape, for the message.

        Raises:
            ModelError: Something is left alone.
        """
        if self.left_alone:
            raise ModelError(
                f"{len(self.left_alone)} tensors of the checkpoint, first {self.left_alone[0]}, "
                f"are no part of the model's class and would not fit after {what}: leave that "
                f"out, or remove them from the checkpoint"
            )


def find_source(
    folder: Path, model: PreTrainedModel, packing: Packing | None, *, keep_dtype: bool
) -> Source:
    """Compare the tensors in a folder with those of the model that was loaded from it.

    Args:
        folder: The folder.
        model: The model.
        packing: How the folder's weights are packed; None if they are plain.
        keep_dtype: Whether weights are saved in the number type of the source.

    Raises:
        ModelError: The folder has no weights, or the configuration leaves out decoder blocks.
    """
    tensors = dict(list_tensors(list_weight_files(folder)))
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    held = {name.removeprefix(prefix) for name in list_stored(model)}
    plain = {name: find_plain_name(name) if packing else name for name in tensors}
    left = [name for name in tensors if plain[name].removeprefix(prefix) not in held]
    _check_lists(left, held, model)
    left = packing.choose_weights(left) if packing else left
    dtype = packing.dtype if packing else _find_main_dtype(tensors)
    return Source(
        folder=folder,
        tensors=tensors,
        left_alone=tuple(sorted(name for name in left if not _COMPUTED.search(name))),
        dtype=dtype if keep_dtype else None,
        prefix=prefix,
        block_size=packing.block_size if packing else (1, 1),
    )


def check_gguf(path: Path, model: nn.Module) -> None:
    """Check that a model holds all weights of the GGUF file that it was read from.

    Names differ there, so the weights are counted.

    Raises:
        ModelError: The file has more.
    """
    from gguf import GGUFReader  # of an extra

    tensors = [tensor for tensor in GGUFReader(path).tensors if not _ROPE.search(tensor.name)]
    state = model.state_dict().values()
    held = sum({(t.data_ptr(), t.shape): t.numel() for t in state}.values())
    more = sum(int(tensor.n_elements) for tensor in tensors) - held
    if more > 0:
        raise ModelError(
            f"{more} weights of {path.name} are no part of {type(model).__name__} and would be "
            "lost: give the model as a folder of safetensors"
        )


def list_stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of the model's checkpoint by name, as `save_pretrained` names them.

    They are on the meta device; tied weights are one object, and have all their names.
    """
    empty: dict[tuple[int, torch.Size], Tensor] = {}
    state = {
        name: empty.setdefault((tensor.data_ptr(), tensor.shape), tensor.to("meta"))
        for name, tensor in model.state_dict().items()
        if name not in (model._keys_to_ignore_on_save or ())
    }
    stored: dict[str, Tensor] = revert_weight_conversion(model, state)
    return stored


def list_weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in the folder of a checkpoint.

    Raises:
        ModelError: There are none.
    """
    for name in _WEIGHTS:
        path = folder / name
        if path.exists():
            names = read_json(path)["weight_map"].values() if path.suffix == ".json" else [name]
            return [folder / name for name in sorted(set(names))]
    raise ModelError(f"{folder} has none of the files {', '.join(_WEIGHTS)}")


def list_tensors(files: Iterable[Path]) -> Iterator[tuple[str, SourceTensor]]:
    """Yield the names of all tensors and facts about them; safetensors' data is not read."""
    for path in files:
        if path.suffix != ".safetensors":
            for name, tensor in _load_pickled(path).items():
                yield name, SourceTensor(path, tensor.dtype, tensor.shape)
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape = torch.Size(part.get_shape())
                some = part[:0] if shape else file.get_tensor(name)
                yield name, SourceTensor(path, some.dtype, shape)


def _load_pickled(path: Path) -> dict[str, Tensor]:
    mapped = zipfile.is_zipfile(path)  # else of an old format, which is read as a whole
    tensors: dict[str, Tensor] = torch.load(
        path, map_location="cpu", mmap=mapped, weights_only=True
    )
    return tensors


def _find_main_dtype(tensors: Mapping[str, SourceTensor]) -> torch.dtype | None:
    """Return the number type of most weights; None if none has a plain one."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in _FLOATS:
            sizes[tensor.dtype] += tensor.shape.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def _check_lists(left: Iterable[str], held: Iterable[str], model: PreTrainedModel) -> None:
    """Check that the model's numbered modules, such as its blocks, are all that the files hold.

    Layers of multi-token prediction may follow the decoder blocks.
    """
    config: Any = model.config.get_text_config()
    made, prefix = _count_modules(held), f"{model.base_model_prefix}."
    predicting = getattr(config, "num_nextn_predict_layers", None) or 0
    for name in left:
        for place, number in _count_modules([name.removeprefix(prefix)]).items():
            ours = made.get(place, 0)
            more = predicting if ours == getattr(config, "num_hidden_layers", None) else 0
            if ours and number > ours + more:
                raise ModelError(
                    f"config.json makes only {ours} modules {place}.*, but the weights have "
                    f"{name}: correct the number in config.json, or remove such weights"
                )


def _count_modules(names: Iterable[str]) -> dict[str, int]:
    """Return one more than the largest index in each numbered list, by the list's name."""
    counts: dict[str, int] = {}
    for name in names:
        for match in re.finditer(r"\.(\d+)(?=\.)", name):
            place = name[: match.start()]
            counts[place] = max(counts.get(place, 0), int(match[1]) + 1)
    return counts
