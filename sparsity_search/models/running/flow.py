"""What a model passes from one decoder block to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.blocks import replace_calls, replace_forwards
from sparsity_search.models.running.arguments import (
    Arguments,
    Key,
    find_hidden,
    list_parts,
    map_tensors,
    name_arguments,
)
from sparsity_search.models.running.head import compute_last_hidden

#: Number of tokens on which the flow is traced.
_TRACED = 8


@dataclass(frozen=True, eq=False)
class BlockFlow:
    """What a model passes from block to block.

    Attributes:
        wires: For each block, which arguments are parts of the output of the block before: the
            number of the part, by argument. Part 0 is the hidden states. Those of block 0 are the
            embedding, its only part.
        outputs: An output of each block, for its form.
    """

    wires: Sequence[Mapping[Key, int]]
    outputs: Sequence[Any]

    @property
    def streams(self) -> int:
        """Number of vectors of hidden states that each token has."""
        hidden: Tensor = list_parts(self.outputs[0])[0]
        return hidden.shape[:-1].numel() // _TRACED

    def read_hidden(self, block: int, arguments: Arguments) -> Tensor:
        """Return the hidden states that a block gets, as they are."""
        hidden: Tensor = arguments[next(k for k, part in self.wires[block].items() if part == 0)]
        return hidden

    def stub(self, block: int, arguments: Arguments) -> Any:
        """Return an output of a block's form with the hidden states that it gets."""
        output, hidden = self.outputs[block], self.read_hidden(block, arguments)
        return hidden if isinstance(output, Tensor) else type(output)((hidden, *output[1:]))


def trace_flow(model: nn.Module, blocks: Sequence[nn.Module] | nn.ModuleList) -> BlockFlow:
    """Find out what a model passes from block to block, on a few tokens.

    After a pass of the model, its code runs between the blocks a second time, with other outputs
    of all blocks but the last in place of running them: what is the same does not depend on them.

    Raises:
        ModelError: The blocks cannot be run one by one with the model's own result. They do not
            run once each, one after another; or something depends on their outputs that is not a
            part of the output of the block before, nor an entry of a mapping that blocks share.
    """
    refusal = f"{type(model).__name__} cannot be run block by block"
    calls, end = _run(model, replace_forwards, blocks, [block.forward for block in blocks])
    if (order := [call.block for call in calls]) != list(range(len(blocks))):
        raise ModelError(f"{refusal}: a pass runs its {len(blocks)} blocks in the order {order}")
    for block, arguments, output in calls:
        if not isinstance(output, Tensor) and type(output) not in (tuple, list):
            raise ModelError(f"{refusal}: block {block} returns {type(output).__name__}")
        for key, value in arguments.items():
            if isinstance(value, Cache):
                raise ModelError(f"{refusal}: block {block} keeps state in {_describe(key)}")
    outputs = [call.output for call in calls]
    varied = [*map(_vary, outputs[:-1]), outputs[-1]]
    others, other_end = _run(model, replace_calls, blocks, [_constant(v) for v in varied])
    wires = [{find_hidden(calls[0].arguments): 0}]
    for call, other in zip(calls[1:], others[1:], strict=True):
        wires.append(_find_wires(other.arguments, list_parts(varied[call.block - 1])))
        for key, value in other.arguments.items():
            if key not in wires[-1] and not _is_same(call.arguments[key], value):
                raise ModelError(
                    f"{refusal}: {_describe(key)} of block {call.block} depends on the blocks "
                    "before in an unknown way"
                )
    if not _is_same(end, other_end):
        raise ModelError(f"{refusal}: its output depends on more than that of the last block")
    return BlockFlow(wires, outputs)


class _Call(NamedTuple):
    block: int
    arguments: dict[Key, Any]
    output: Any


@torch.inference_mode()
def _run(
    model: nn.Module,
    replace: Callable[..., Any],
    blocks: Sequence[nn.Module] | nn.ModuleList,
    forwards: Sequence[Callable[..., Any]],
) -> tuple[list[_Call], Tensor]:
    """Run a few tokens; return the calls of the blocks, and the decoder's output."""
    calls: list[_Call] = []

    def watch(block: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            arguments = {
                key: dict(value) if isinstance(value, MutableMapping) else value
                for key, value in name_arguments(args, kwargs).items()
            }
            calls.append(_Call(block, arguments, forward(*args, **kwargs)))
            return calls[-1].output

        return run

    with replace(blocks, [watch(*pair) for pair in enumerate(forwards)]):
        end = compute_last_hidden(model, torch.arange(_TRACED)[None])
    return calls, end


def _vary(output: Any) -> Any:
    """Return other values of the same form; what is None may be a tensor for a longer text."""
    parts = [map_tensors(part, _change) for part in list_parts(output)]
    parts = [torch.empty(0) if part is None else part for part in parts]
    return parts[0] if isinstance(output, Tensor) else type(output)(parts)


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _change(tensor: Tensor) -> Tensor:
    return 1.5 * tensor + 1 if tensor.is_floating_point() else tensor.clone()


def _find_wires(arguments: Arguments, parts: Sequence[Any]) -> dict[Key, int]:
    """Return which arguments are parts of an output: the number of the part, by argument."""
    wires = {
        key: number
        for key, value in arguments.items()
        for number, part in enumerate(parts)
        if value is part and not isinstance(value, (bool, int, float, str))
    }
    if 0 not in wires.values():  # a copy is the same
        key = find_hidden(arguments)
        wires |= {key: 0} if _is_same(arguments[key], parts[0]) else {}
    return wires


def _is_same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, as far as their kinds are known.

    Of mappings, only the entries of ``other`` count.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and _has_equal_values(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(key in one and _is_same(one[key], value) for key, value in other.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    known = (Tensor, Mapping, list, tuple, bool, int, float, str, type(None))
    return one is other or not (isinstance(one, known) or isinstance(other, known)) or one == other


def _has_equal_values(one: Tensor, other: Tensor) -> bool:
    same = one == other
    if one.is_floating_point():
        same |= one.isnan() & other.isnan()
    return bool(same.all())


def _describe(key: Key) -> str:
    return f"argument {key + 1}" if isinstance(key, int) else key
