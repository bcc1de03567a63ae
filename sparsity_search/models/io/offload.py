"""Models larger than memory: the blocks' weights rest in a file, and one block at a time works."""

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
from sparsity_search.models.io.mapped import Mapped

#: Attribute of a model whose blocks are offloaded.
_OFFLOAD = "_sparsity_search_offload"
#: Attribute of a parameter that works on the device: where it rests.
_RESTS = "_sparsity_search_rests"
#: Number of the option in glibc's ``malloc.h``.
_MMAP_THRESHOLD = -3


class Offload:
    """Keeps the weights of a model's decoder blocks in a file, and moves them to the device.

    Hooks move a block there before it runs and drop the copy afterwards; where the device is the
    CPU the block works in the file's own pages, which are released afterwards. Outside of
    `present`, the weights rest: they are read and written in the file, on the CPU.

    Args:
        model: Its blocks may be on the meta device, with the weights in accelerate's hooks.
        device: Where blocks run; everything outside of them moves there for good.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        _give_back()
        prefix, self._blocks = find_blocks(model)
        self._device = device
        self._pinned: set[nn.Module] = set()
        self._weights = _weights_to_file(model, prefix)
        self._copies: list[weakref.ref[Mapped]] = []
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
        """Keep a block on the device; what is written to its weights there stays."""
        module = self._blocks[block]
        self._enter(module)
        self._pinned.add(module)
        try:
            yield
        finally:
            self._pinned.discard(module)
            _rest(module, keep=True)
            self.release()

    def rest(self) -> None:
        """Bring every block to rest; what was written on the device since is lost."""
        self._pinned.clear()
        for block in self._blocks:
            _rest(block, keep=False)

    def copied(self, tensors: Iterator[tuple[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return copies of tensors that rest in a file as well, for as long as they are used."""
        copies = Mapped(tensors)
        self._copies = [ref for ref in self._copies if ref() is not None]
        self._copies.append(weakref.ref(copies))
        return copies

    def release(self) -> None:
        """Take what rests out of memory."""
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
            _rest(block, keep=False)
            self.release()

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


def offload_of(model: nn.Module) -> Offload | None:
    """Return what keeps the weights of a model's blocks; None for a model all in memory."""
    return getattr(model, _OFFLOAD, None)


def _give_back() -> None:
    """Let freed tensors go back to the system at once: glibc would keep half of the peak."""
    option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if option is not None:
        option(_MMAP_THRESHOLD, 2**20)


@torch.inference_mode(False)
@torch.no_grad()
def _rest(block: nn.Module, *, keep: bool) -> None:
    """Bring a block's parameters to where they rest.

    Args:
        block: The block.
        keep: Take over what was written to the copies on the device.
    """
    for parameter in block.parameters():
        now = parameter.data
        rests = parameter.__dict__.pop(_RESTS, None)
        if rests is None or (keep and rests.shape != now.shape):  # new, as an added bias is
            parameter.data = now.cpu()
        else:
            if keep and rests.data_ptr() != now.data_ptr():
                rests.copy_(now)
            parameter.data = rests


def _weights_to_file(model: nn.Module, prefix: str) -> Mapped:
    """Move the weights of a model's blocks to a file; what is shared stays so."""
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

    file = Mapped(stream())
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():  # accelerate leaves the class's own method there
        module.__dict__.pop("forward", None)
    made: dict[str, Any] = {
        name: nn.Parameter(tensor, requires_grad=False) for name, tensor in file.items()
    }
    for module, name, place in slots:
        module._parameters[name] = made[place]
    model.__dict__.pop("hf_device_map", None)
    return file
