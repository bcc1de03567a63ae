"""Outputs of the first blocks, which candidates that begin alike have in common: run once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.models.anatomy.blocks import replaced
from sparsity_search.models.anatomy.prunable import PrunableModel


@dataclass
class _Path:
    """What one text met on its last way through the model.

    Attributes:
        states: Of the blocks that it went through.
        outputs: Those blocks' outputs, by index; not of all.
        size: Memory that they take, in bytes.
    """

    states: Sequence[Hashable] = ()
    outputs: dict[int, Any] = field(default_factory=dict)
    size: int = 0

    def keep(self, index: int, output: Any) -> None:
        known = self.outputs.get(index)
        self.outputs[index] = output
        self.size += _n_bytes(output) - (0 if known is None else _n_bytes(known))

    def turn(self, states: Sequence[Hashable]) -> int:
        """Go another way, and return how many blocks of the last one are on it."""
        pairs = zip(self.states, states, strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), len(self.states))
        self.states = states
        for index in [i for i in self.outputs if i >= shared]:
            self.size -= _n_bytes(self.outputs.pop(index))
        return shared


class Prefixes:
    """Runs a forward pass from the first block on that differs from the last pass of that text.

    A block's output follows from the text and the states of the blocks up to it. Of every text
    the outputs of its last pass are kept. If candidates come in the order of their states, each
    node of their prefix tree is run once; skipped blocks cost nothing, and scores are equal to
    the bit. Beyond the memory bound the text used longest ago is forgotten, then only every
    second, third, … block's output is kept, and what lies between is run again.

    Args:
        subject: The model.
        limit: Memory for outputs, in bytes; 0 keeps nothing.
    """

    def __init__(self, subject: PrunableModel, limit: int) -> None:
        self._model = subject.model
        self._blocks = subject.blocks
        self._positions = [
            [p for p, unit in enumerate(subject.layout) if unit.block == block]
            for block in range(len(subject.blocks))
        ]
        self._limit = limit
        self._states: Sequence[Hashable] = ()
        self._paths: dict[str, _Path] = {}
        self._path = _Path()
        self._start = -1

    @contextmanager
    def at(self, states: Sequence[Hashable]) -> Iterator[nn.Module]:
        """Yield the model; it skips what can be skipped of its forward passes inside.

        Args:
            states: Of each unit; equal ones mean equal weights.
        """
        self._states = [tuple(states[p] for p in of) for of in self._positions]
        decoder: Any = self._model.base_model
        handle = decoder.register_forward_pre_hook(self._begin, with_kwargs=True)
        blocks = self._blocks if self._limit else ()
        forwards = [self._skipping(index, block.forward) for index, block in enumerate(blocks)]
        try:
            with replaced(self._blocks, forwards):
                yield self._model
        finally:
            handle.remove()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        key = _digest([*args, *kwargs.values()])
        self._path = self._paths[key] = self._paths.pop(key, _Path())
        shared = self._path.turn(self._states)
        unread = (i for i in range(shared) if self._read(i) and i not in self._path.outputs)
        end = next(unread, shared)
        self._start = max((i for i in self._path.outputs if i < end), default=-1)

    def _read(self, index: int) -> bool:
        """Return whether somebody looks at a block's output, so that it has to be right."""
        return bool(self._blocks[index]._forward_hooks)

    def _skipping(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def skip(*args: Any, **kwargs: Any) -> Any:
            if index <= self._start:  # what comes before the output of `start` is not used
                return self._path.outputs.get(index, self._path.outputs[self._start])
            output = forward(*args, **kwargs)
            if index in self._path.outputs or self._has_room(index, _n_bytes(output)):
                self._path.keep(index, output)
            return output

        return skip

    def _has_room(self, index: int, size: int) -> bool:
        """Return whether a block's output is to be kept, and forget other texts for it."""
        stride = math.ceil(size * len(self._blocks) / self._limit)
        if (index + 1) % stride and not self._read(index):
            return False
        for key, path in list(self._paths.items()):
            if self.used + size <= self._limit:
                return True
            if path is not self._path:
                del self._paths[key]
        return self.used + size <= self._limit

    @property
    def used(self) -> int:
        """Memory that outputs take now, in bytes."""
        return sum(path.size for path in self._paths.values())


def _digest(values: Sequence[Any]) -> str:
    """Return what identifies the arguments of a forward pass."""
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            )
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def _n_bytes(output: Any) -> int:
    tensors = (output,) if isinstance(output, Tensor) else output
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))
