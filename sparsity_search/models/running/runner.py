"""The runner of single blocks: what flows into a block in, what flows out of it out.

Statistics, sequential pruning and the supernet all run blocks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat, zip_longest
from typing import Any

import torch
from torch import Tensor

from sparsity_search.models.anatomy.blocks import replace_calls
from sparsity_search.models.anatomy.linears import LinearCallMode
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.arguments import Arguments, map_tensors, name_arguments
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.running.stream import Part, Stream

#: Approximate number of tokens per forward pass on a CPU. With more tokens, activations leave its
#: cache and return to the system whenever they are freed: page faults take a tenth of the time.
_CPU_TOKENS = 512
#: Approximate number of tokens per forward pass on other devices.
_TOKENS = 8192


def compute_batch_size(device: torch.device, length: int) -> int:
    """Return the number of sequences of ``length`` tokens per forward pass."""
    return max(1, (_CPU_TOKENS if device.type == "cpu" else _TOKENS) // length)


class BlockRunner:
    """Runner of single decoder blocks.

    Each block is called with the arguments that the model itself passes to it. They are captured
    for each batch from a forward pass in which no block is run, and may depend on the text. What
    equals the first batch's (masks, rotary embeddings) is stored once. All sequences have one
    length and no padding.

    Args:
        subject: The model.
        tokens: ``(n_sequences, length)`` int64.
        at_once: Sequences of a batch; by default as many as run fast.

    Attributes:
        batches: The tokens of each forward pass.
        device: Device on which blocks run.
        waiting: Device of all that is kept between blocks.

    Raises:
        ModelError: The blocks cannot be run one by one, see `trace_flow`.
    """

    def __init__(self, subject: PrunableModel, tokens: Tensor, at_once: int | None = None) -> None:
        self._model = subject.model
        self._blocks = subject.blocks
        self._flow = subject.flow
        self.device = next(subject.model.parameters()).device
        # what an offloaded model computes is in the CPU's memory between blocks
        self.waiting = self.device if subject.offload is None else torch.device("cpu")
        at_once = at_once or compute_batch_size(self.device, tokens.shape[1])
        self.batches = torch.split(tokens, at_once)

    @torch.inference_mode()
    def embed(self) -> list[Stream]:
        """Return what flows into block 0, for each batch."""
        first: dict[int, list[Arguments]] = {}
        return [self._capture(batch, first) for batch in self.batches]

    @torch.inference_mode()
    def run(self, block: int, streams: Sequence[Stream]) -> list[Stream]:
        """Return what flows out of a block, for each batch."""
        with LinearCallMode(self._blocks[block]):
            return [stream.call(block, self._blocks[block]) for stream in streams]

    @torch.inference_mode()
    def finish(self, streams: Sequence[Stream]) -> list[Tensor]:
        """Return what the head reads, given what flows out of the last block."""
        return [self._finish(*pair) for pair in zip(self.batches, streams, strict=True)]

    def _finish(self, batch: Tensor, stream: Stream) -> Tensor:
        output = map_tensors(stream.output, lambda tensor: tensor.to(self.device))
        # only the last block's output is used
        with replace_calls(self._blocks, repeat(lambda *_, **__: output)):
            return compute_last_hidden(self._model, batch)

    def _capture(self, batch: Tensor, first: dict[int, list[Arguments]]) -> Stream:
        calls: list[Arguments] = []

        def stub(*args: Any, **kwargs: Any) -> Any:
            calls.append(name_arguments(args, kwargs))
            return self._flow.stub(len(calls) - 1, calls[-1])

        with replace_calls(self._blocks, repeat(stub)):
            compute_last_hidden(self._model, batch)
        wired: list[Arguments] = [
            {key: Part(wires[key]) if key in wires else value for key, value in call.items()}
            for call, wires in zip(calls, self._flow.wires, strict=True)
        ]
        known = first.setdefault(len(batch), wired)
        done: dict[int, Any] = {}
        return Stream(
            shape=(batch.shape[0], batch.shape[1]),
            calls=[self._share(*pair, done) for pair in zip(wired, known, strict=True)],
            output=self._wait(self._flow.read_hidden(0, calls[0])),
            device=self.device,
            waiting=self.waiting,
        )

    def _share(self, value: Any, known: Any, done: dict[int, Any]) -> Any:
        """Return an argument with those of its tensors replaced that equal the known one's.

        Args:
            value: The argument, or all of a block's.
            known: The same of an earlier batch.
            done: What was returned for other arguments, by their ``id``: what is one object stays
                one.
        """
        if id(value) in done:
            return done[id(value)]
        shared = value
        if isinstance(value, Tensor):
            shared = known if value is known or _is_equal(value, known) else self._wait(value)
        elif type(value) is dict:
            known = known if isinstance(known, dict) else {}
            shared = {k: self._share(v, known.get(k), done) for k, v in value.items()}
        elif type(value) in (list, tuple):
            known = known if isinstance(known, (list, tuple)) else ()
            pairs = zip_longest(value, known[: len(value)])
            shared = type(value)(self._share(*pair, done) for pair in pairs)
        done[id(value)] = shared
        return shared

    def _wait(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.waiting)


def _is_equal(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
