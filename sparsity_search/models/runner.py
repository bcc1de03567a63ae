"""The one block-by-block runner: hidden states in, hidden states out, for any use.

Statistics, sequential pruning and supernet building all walk the blocks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.models.head import last_hidden
from sparsity_search.models.linears import Called
from sparsity_search.models.prunable import PrunableModel

#: Sequences that pass a block at once.
BATCH = 8


class _Captured(Exception):
    """Ends the forward pass once the first block's input is known."""


class BlockRunner:
    """Runs the decoder blocks of a model one at a time on stored hidden states.

    Each block is called with the arguments that the model itself gave it (masks and rotary
    embeddings may differ between blocks). They are captured from one full forward pass for each
    batch size; all sequences have one length and no padding, so they do not depend on the text.

    Args:
        subject: The model.
        tokens: ``(n_sequences, length)`` int64.
    """

    def __init__(self, subject: PrunableModel, tokens: Tensor) -> None:
        self._model = subject.model
        self._blocks = subject.blocks
        self._device = next(subject.model.parameters()).device
        # between blocks, hidden states wait where the blocks of an offloaded model do
        self._waiting = self._device if subject.offload is None else torch.device("cpu")
        self._batches = torch.split(tokens, BATCH)
        self._kwargs: dict[int, list[dict[str, Any]]] = {}
        self._in_tuples = False
        with torch.inference_mode():
            for batch in self._batches:
                if len(batch) not in self._kwargs:
                    self._kwargs[len(batch)] = self._capture_arguments(batch)

    @torch.inference_mode()
    def embed(self) -> list[Tensor]:
        """Return the input of block 0 for each batch, ``(batch, length, hidden)``."""
        return [self._capture_input(batch).to(self._waiting) for batch in self._batches]

    @torch.inference_mode()
    def run(self, block: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the output of one block for each batch of its inputs."""
        return [self._call(block, states) for states in hidden]

    @torch.inference_mode()
    def finish(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return what the decoder makes of the last block's outputs: its final norm, above all."""
        own = [block.__dict__.get("forward") for block in self._blocks]
        try:
            return [
                self._finish(batch, states)
                for batch, states in zip(self._batches, hidden, strict=True)
            ]
        finally:
            for block, forward in zip(self._blocks, own, strict=True):
                block.__dict__.pop("forward", None)
                if forward is not None:
                    block.forward = forward

    def _finish(self, batch: Tensor, states: Tensor) -> Tensor:
        states = states.to(self._device)
        output = (states,) if self._in_tuples else states
        for block in self._blocks:  # what comes before the last block's output is not used
            block.forward = lambda *_, **__: output
        return last_hidden(self._model, batch)

    def _call(self, block: int, states: Tensor) -> Tensor:
        with Called(self._blocks[block]):
            kwargs = self._kwargs[len(states)][block]
            output = self._blocks[block](states.to(self._device), **kwargs)
        return (output if isinstance(output, Tensor) else output[0]).to(self._waiting)

    def _forward(self, batch: Tensor) -> None:
        self._model(input_ids=batch.to(self._device), use_cache=False, logits_to_keep=1)

    def _capture_arguments(self, batch: Tensor) -> list[dict[str, Any]]:
        captured: list[dict[str, Any]] = []

        def hook(_: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

        def look(_: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._in_tuples = not isinstance(output, Tensor)

        handles = [b.register_forward_pre_hook(hook, with_kwargs=True) for b in self._blocks]
        handles.append(self._blocks[-1].register_forward_hook(look))
        try:
            self._forward(batch)
        finally:
            for handle in handles:
                handle.remove()
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
