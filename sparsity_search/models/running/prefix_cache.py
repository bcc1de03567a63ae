"""Reuse of the first blocks' outputs between candidates that share a prefix."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparsity_search.models.anatomy.blocks import replace_forwards
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.tensor_bytes import to_bytes
from sparsity_search.models.running.arguments import find_written, list_mappings, map_tensors


@dataclass
class _Path:
    """The last pass of one text through the model.

    Attributes:
        states: States of the blocks in that pass.
        outputs: Stored outputs of some of these blocks, by index.
        written: What some blocks wrote into the mappings among their arguments, by index.
        size: Memory of the outputs and of what is written, in bytes.
    """

    states: Sequence[Hashable] = ()
    outputs: dict[int, Any] = field(default_factory=dict)
    written: dict[int, list[dict[Any, Any]]] = field(default_factory=dict)
    size: int = 0

    def keep(self, index: int, output: Any) -> None:
        self.size += _count_bytes(output) - _count_bytes(self.outputs.get(index))
        self.outputs[index] = output

    def write(self, index: int, entries: list[dict[Any, Any]]) -> None:
        if any(entries):
            self.size += _count_bytes(entries) - _count_bytes(self.written.get(index))
            self.written[index] = entries

    def turn(self, states: Sequence[Hashable]) -> int:
        """Start a pass with new states; return the number of blocks shared with the last one."""
        pairs = zip(self.states, states, strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), len(self.states))
        self.states = states
        for kept in (self.outputs, self.written):
            for index in [i for i in kept if i >= shared]:
                self.size -= _count_bytes(kept.pop(index))
        return shared


class PrefixCache:
    """A model whose forward passes start at the first block that differs from the last pass.

    A block's output depends on the text and the states of the blocks up to it. For every text,
    the outputs of its last pass are stored. If candidates are sorted by their states, each node
    of their prefix tree is run once. Skipped blocks cost nothing, and scores are equal to the
    bit. If the memory is exhausted, the least recently used text is dropped; then only every
    second, third, … block's output is stored, and the blocks between are run again.

    Args:
        subject: The model.
        limit: Memory for outputs, in bytes; 0 stores none.
    """

    def __init__(self, subject: PrunableModel, limit: int) -> None:
        self._model = subject.model
        self._prefix = subject.prefix
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
        """Yield the model, whose forward passes inside skip shared blocks.

        Args:
            states: State of each unit; equal states mean equal weights.
        """
        self._states = [tuple(states[p] for p in of) for of in self._positions]
        # the outermost module around the blocks that is not the model itself
        around = self._prefix.rpartition(".")[0].partition(".")[0]
        decoder = self._model.get_submodule(around)
        handle = decoder.register_forward_pre_hook(self._begin, with_kwargs=True)
        blocks = self._blocks if self._limit else ()
        forwards = [self._skipping(index, block.forward) for index, block in enumerate(blocks)]
        try:
            with replace_forwards(self._blocks, forwards):
                yield self._model
        finally:
            handle.remove()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        key = _compute_digest([*args, *kwargs.values()])
        self._path = self._paths[key] = self._paths.pop(key, _Path())
        shared = self._path.turn(self._states)
        unread = (i for i in range(shared) if self._read(i) and i not in self._path.outputs)
        end = next(unread, shared)
        self._start = max((i for i in self._path.outputs if i < end), default=-1)

    def _read(self, index: int) -> bool:
        """Return whether a hook reads a block's output, so that it has to be correct."""
        return bool(self._blocks[index]._forward_hooks)

    def _skipping(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def skip(*args: Any, **kwargs: Any) -> Any:
            mappings = list_mappings([*args, *kwargs.values()])
            if index <= self._start:  # only the output of `start` is used
                written = self._path.written.get(index, [])
                for mapping, entries in zip(mappings, written, strict=False):
                    mapping.update(entries)
                return self._path.outputs.get(index, self._path.outputs[self._start])
            before = [dict(mapping) for mapping in mappings]
            output = forward(*args, **kwargs)
            self._path.write(index, list(map(find_written, before, mappings)))
            if index in self._path.outputs or self._has_room(index, _count_bytes(output)):
                self._path.keep(index, output)
            return output

        return skip

    def _has_room(self, index: int, size: int) -> bool:
        """Return whether a block's output can be stored, and drop other texts to make room."""
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
        """Memory of the stored outputs, in bytes."""
        return sum(path.size for path in self._paths.values())


def _compute_digest(values: Sequence[Any]) -> str:
    """Return a digest of the arguments of a forward pass."""
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(to_bytes(value).numpy().data)
        elif isinstance(value, (list, tuple, Mapping)):
            parts = [*value, *value.values()] if isinstance(value, Mapping) else value
            total.update(_compute_digest(parts).encode())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def _count_bytes(value: Any) -> int:
    """Return the memory of the tensors in a value, also in lists, tuples and dictionaries."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    map_tensors(value, count)
    return total
