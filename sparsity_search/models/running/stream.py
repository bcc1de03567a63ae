"""What flows from block to block for one batch of text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsity_search.errors import ModelError
from sparsity_search.models.running.arguments import (
    Arguments,
    find_written,
    list_parts,
    map_tensors,
    split_arguments,
)

_CPU = torch.device("cpu")


class Part(NamedTuple):
    """An argument of a block: the part with this number of the output of the block before."""

    number: int


@dataclass(frozen=True, eq=False)
class Stream:
    """One batch of text on its way through the blocks.

    Attributes:
        shape: Number of sequences, and their length.
        calls: All arguments of each block, with a `Part` for what the block before puts out.
        output: Output of the last block that was run, as it is; before block 0, the embedding.
        written: Entries that blocks wrote into mappings among their arguments, by the mapping's
            ``id``. Gemma 3n shares keys and values in this way.
        device: Device on which blocks run.
        waiting: Device of all tensors between blocks.
    """

    shape: tuple[int, int]
    calls: Sequence[Arguments]
    output: Any
    written: Mapping[int, Mapping[Any, Any]] = field(default_factory=dict)
    device: torch.device = _CPU
    waiting: torch.device = _CPU

    @property
    def hidden(self) -> Tensor:
        """The hidden states, ``(batch, length, features)``."""
        return arrange_hidden(self.output, self.shape)

    def call(
        self,
        block: int,
        forward: Callable[..., Any],
        prepare: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> Stream:
        """Return the stream after a block; this one stays as it is.

        Args:
            block: Index of the block.
            forward: Function to call for it, with the block's arguments.
            prepare: Function to apply to every tensor among them first.
        """

        def take(tensor: Tensor) -> Tensor:
            return prepare(tensor.to(self.device))

        def wait(tensor: Tensor) -> Tensor:
            return tensor.to(self.waiting)

        parts, arguments = list_parts(self.output), {}
        shared: dict[int, MutableMapping[Any, Any]] = {}
        for key, value in self.calls[block].items():
            if isinstance(value, MutableMapping):
                filled = {**value, **self.written.get(id(value), {})}
                arguments[key] = shared.setdefault(id(value), copy.copy(value))
                arguments[key].update(map_tensors(filled, take))
            else:
                taken = parts[value.number] if isinstance(value, Part) else value
                arguments[key] = map_tensors(taken, take)
        before = {number: dict(mapping) for number, mapping in shared.items()}
        args, kwargs = split_arguments(arguments)
        output = map_tensors(forward(*args, **kwargs), wait)
        written = dict(self.written)
        for number, mapping in shared.items():
            new = map_tensors(find_written(before[number], mapping), wait)
            written[number] = {**written.get(number, {}), **new}
        return replace(self, output=output, written=written)


def list_hidden(streams: Sequence[Stream]) -> list[Tensor]:
    """Return the hidden states of each batch, ``(batch, length, features)``."""
    return [stream.hidden for stream in streams]


def arrange_hidden(output: Any, shape: tuple[int, int]) -> Tensor:
    """Return the hidden states in a block's output, ``(batch, length, features)``.

    Some models carry several streams: ``(streams, batch, length, hidden)`` in Gemma 3n, and
    ``(batch, length, streams, hidden)`` in DeepSeek-V4. A token's features are those of all.

    Args:
        output: The output; its first part is the hidden states.
        shape: Number of sequences, and their length.

    Raises:
        ModelError: The hidden states have no such axes.
    """
    states: Tensor = list_parts(output)[0]
    for axis in range(states.ndim - 2):
        if states.shape[axis : axis + 2] == shape:
            moved = states.movedim((axis, axis + 1), (0, 1))
            return moved if moved.ndim == 3 else moved.flatten(2)
    raise ModelError(
        f"hidden states of shape {tuple(states.shape)} are not understood for a text of "
        f"{shape[0]} x {shape[1]} tokens"
    )
