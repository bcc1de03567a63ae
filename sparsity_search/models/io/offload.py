"""Models larger than memory: block weights rest in a file, and one block is loaded at a time."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.models.anatomy.blocks import find_blocks
from sparsity_search.models.io.mapped_tensors import MappedTensors

#: Attribute of an offloaded model: its `Offload`.
_OFFLOAD = "_sparsity_search_offload"
#: Attribute of a parameter on the device: its tensor in the file.
_RESTS = "_sparsity_search_rests"
#: Number of the option ``M_MMAP_THRESHOLD`` in glibc's ``malloc.h``.
_MMAP_THRESHOLD = -3


class Offload:
    """File with the weights of a model's decoder blocks, from which blocks are loaded to run.

    Hooks copy a block to the device before it runs and drop the copy afterwards. If the device is
    the CPU, the block runs on the file's own pages, which are released afterwards. Outside of
    `present`, weights are read and written in the file, on the CPU.

    Args:
        model: The model; its blocks may be on the meta device, with weights in accelerate's hooks.
        device: Device on which blocks run; all other modules move to it permanently.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        _return_freed_memory()
        prefix, self._blocks = find_blocks(model)
        self._device = device
        self._pinned: set[nn.Module] = set()
        self._weights = _move_weights_to_file(model, prefix)
        self._copies: list[weakref.ref[MappedTensors]] = []
        resting = {id(p) for p in self._blocks.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in resting:
                parameter.data = parameter.data.to(device)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        for block in self._blocks:
            block.register_forward_pre_hook(lambda block, _: self._enter(block))
            block.register_forward_hook(lambda block, *_: self._leave(block), always_call=True)
        setattr(model, _OFFLOAD, self)

    @contextmanager
    def present(self, block: int) -> Iterator[None]:
        """Keep a block on the device inside; changes of its weights are kept."""
        module = self._blocks[block]
        self._enter(module)
        self._pinned.add(module)
        try:
            yield
        finally:
            self._pinned.discard(module)
            _return_to_file(module, keep=True)
            self.release()

    def rest(self) -> None:
        """Return every block to the file; changes made on the device since are lost."""
        self._pinned.clear()
        for block in self._blocks:
            _return_to_file(block, keep=False)

    def copied(self, tensors: Iterator[tuple[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return copies of tensors in another file, which exists as long as they are used."""
        copies = MappedTensors(tensors)
        self._copies = [ref for ref in self._copies if ref() is not None]
        self._copies.append(weakref.ref(copies))
        return copies

    def release(self) -> None:
        """Drop the weights that rest in files from memory."""
        for file in (self._weights, *(ref() for ref in self._copies)):
            if file is not None:
                file.release()

    def _enter(self, block: nn.Module) -> None:
        if block not in self._pinned:
            with torch.inference_mode(False):
                for parameter in block.parameters():
                    rests = getattr(parameter, _RESTS, parameter.data)
                    setattr(parameter, _RESTS, rests)
                    parameter.data = self._send(rests)

    def _leave(self, block: nn.Module) -> None:
        if block not in self._pinned:
            _return_to_file(block, keep=False)
            self.release()

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


def get_offload(model: nn.Module) -> Offload | None:
    """Return the `Offload` of a model; None if the whole model is in memory."""
    return getattr(model, _OFFLOAD, None)


def _return_freed_memory() -> None:
    """Make glibc return freed tensors to the system at once; it would keep half of the peak."""
    option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if option is not None:
        option(_MMAP_THRESHOLD, 2**20)


@torch.inference_mode(False)
@torch.no_grad()
def _return_to_file(block: nn.Module, *, keep: bool) -> None:
    """Return a block's parameters to the file.

    Args:
        block: The block.
        keep: Whether to copy changes made on the device to the file.
    """
    for parameter in block.parameters():
        now = parameter.data
        rests = parameter.__dict__.pop(_RESTS, None)
        if rests is None or (keep and rests.shape != now.shape):  # new, e.g. an added bias
            parameter.data = now.cpu()
        else:
            if keep and rests.data_ptr() != now.data_ptr():
                rests.copy_(now)
            parameter.data = rests


def _move_weights_to_file(model: nn.Module, prefix: str) -> MappedTensors:
    """Move the weights of a model's blocks to a file; shared weights stay shared."""
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import align_module_device

    modules = {n: m for n, m in model.named_modules() if n.startswith(f"{prefix}.")}
    first: dict[int, str] = {}
    slots = [
        (module, name, first.setdefault(id(parameter), f"{place}.{name}"))
        for place, module in modules.items()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]

    leaders = set(first.values())

    def stream() -> Iterator[tuple[str, Tensor]]:
        for place, module in modules.items():
            cpu = torch.device("cpu") if hasattr(module, "_hf_hook") else None
            with align_module_device(module, cpu):
                for name in module._parameters:
                    if f"{place}.{name}" in leaders:
                        yield f"{place}.{name}", getattr(module, name)

    file = MappedTensors(stream())
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():  # accelerate leaves a reference to the class's method
        module.__dict__.pop("forward", None)
    parameters: dict[str, Any] = {
        name: nn.Parameter(tensor, requires_grad=False) for name, tensor in file.items()
    }
    for module, name, place in slots:
        module._parameters[name] = parameters[place]
    model.__dict__.pop("hf_device_map", None)
    return file
