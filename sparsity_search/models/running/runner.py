"""The runner of single blocks: hidden states in, hidden states out.

Statistics, sequential pruning and the supernet all run blocks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.models.anatomy.blocks import replace_forwards
from sparsity_search.models.anatomy.linears import LinearCallMode
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import compute_last_hidden

#: Approximate number of tokens per forward pass on a CPU. With more tokens, activations leave its
#: cache and return to the system whenever they are freed: page faults take a tenth of the time.
_CPU_TOKENS = 512
#: Approximate number of tokens per forward pass on other devices.
_TOKENS = 8192


def compute_batch_size(device: torch.device, length: int) -> int:
    """Return the number of sequences of ``length`` tokens per forward pass."""
    return max(1, (_CPU_TOKENS if device.type == "cpu" else _TOKENS) // length)


class _Captured(Exception):
    """Ends the forward pass once the first block's input is known."""


class BlockRunner:
    """Runner of single decoder blocks on stored hidden states.

    Each block is called with the arguments that the model itself passes to it (masks and rotary
    embeddings may differ between blocks). They are captured from one forward pass per batch size,
    in which only the first block is run. All sequences have one length and no padding, so the
    arguments do not depend on the text.

    Args:
        subject: The model.
        tokens: ``(n_sequences, length)`` int64.

    Attributes:
        batches: The tokens of each forward pass.
    """

    def __init__(self, subject: PrunableModel, tokens: Tensor) -> None:
        self._model = subject.model
        self._blocks = subject.blocks
        self._device = next(subject.model.parameters()).device
        # hidden states of an offloaded model are in the CPU's memory between blocks
        self._waiting = self._device if subject.offload is None else torch.device("cpu")
        self.batches = torch.split(tokens, compute_batch_size(self._device, tokens.shape[1]))
        self._kwargs: dict[int, list[dict[str, Any]]] = {}
        self._in_tuples = False
        with torch.inference_mode():
            for batch in self.batches:
                if len(batch) not in self._kwargs:
                    self._kwargs[len(batch)] = self._capture_arguments(batch)

    @torch.inference_mode()
    def embed(self) -> list[Tensor]:
        """Return the input of block 0 for each batch, ``(batch, length, hidden)``."""
        return [self._capture_input(batch).to(self._waiting) for batch in self.batches]

    @torch.inference_mode()
    def run(self, block: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the output of one block for each batch of its inputs."""
        return [self._call(block, states) for states in hidden]

    @torch.inference_mode()
    def finish(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder's outputs, given the last block's: mainly its final norm."""
        pairs = zip(self.batches, hidden, strict=True)
        return [self._finish(batch, states) for batch, states in pairs]

    def _finish(self, batch: Tensor, states: Tensor) -> Tensor:
        states = states.to(self._device)
        output = (states,) if self._in_tuples else states
        # only the last block's output is used
        with replace_forwards(self._blocks, repeat(lambda *_, **__: output)):
            return compute_last_hidden(self._model, batch)

    def _call(self, block: int, states: Tensor) -> Tensor:
        with LinearCallMode(self._blocks[block]):
            kwargs = self._kwargs[len(states)][block]
            output = self._blocks[block](states.to(self._device), **kwargs)
        return (output if isinstance(output, Tensor) else output[0]).to(self._waiting)

    def _forward(self, batch: Tensor) -> None:
        self._model(input_ids=batch.to(self._device), use_cache=False, logits_to_keep=1)

    def _capture_arguments(self, batch: Tensor) -> list[dict[str, Any]]:
        captured: list[dict[str, Any]] = []
        outputs: list[Any] = []

        def hook(_: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

        def look(_: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            outputs.append(output)

        first, *others = self._blocks
        handles = [b.register_forward_pre_hook(hook, with_kwargs=True) for b in self._blocks]
        handles.append(first.register_forward_hook(look))
        try:
            with replace_forwards(others, repeat(lambda *_, **__: outputs[0])):
                self._forward(batch)
        finally:
            for handle in handles:
                handle.remove()
        self._in_tuples = not isinstance(outputs[0], Tensor)
        return captured

    def _capture_input(self, batch: Tensor) -> Tensor:
        captured: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append(args[0] if args else kwargs["hidden_states"])
            raise _Captured

        handle = self._blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            self._forward(batch)
        except _Captured:
            pass
        finally:
            handle.remove()
        return captured[0]
