"""Distance of some blocks' hidden states, and of the predictions, from the dense model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, ModelError
from sparsity_search.evaluators.bases.kl import PoolDivergence, check_kl_settings
from sparsity_search.interfaces.evaluator import Evaluator, Proxy, split_batches
from sparsity_search.models.anatomy.blocks import find_blocks
from sparsity_search.models.running.head import check_head, compute_last_hidden
from sparsity_search.models.running.stream import arrange_hidden
from sparsity_search.trials.history import Score

#: Blocks by name, given how many there are.
_NAMED: dict[str, Callable[[int], int]] = {
    "first": lambda _: 0,
    "middle": lambda n_blocks: n_blocks // 2,
    "last": lambda n_blocks: n_blocks - 1,
}


@dataclass(frozen=True, kw_only=True)
class HiddenStateEvaluator(Evaluator):
    """Error of some blocks' hidden states, plus ``KL(dense ‖ pruned)``; Týr's fitness.

    ``Σ_l α_l ‖h_l^dense − h_l^pruned‖² + β KL(dense ‖ pruned)`` (Týr-the-Pruner,
    arXiv 2503.09657, equation 6), where ``h_l`` is the output of block ``l``. The squared norm is
    the mean over a sequence's tokens, the divergence is that of ``kl_divergence`` in nats, and
    the score is the mean over sequences. The paper gives no α and β, so the defaults are ours.

    ``relative`` is ours too. It divides each block's error by the sequence's mean
    ``‖h_l^dense‖²``. Scales of hidden states differ by orders of magnitude between blocks and
    models, so with raw errors one block would decide, and no β would fit two models.

    The proxy keeps the dense model's last hidden states and the outputs of the blocks in the
    model's dtype, ``n_sequences · length · hidden`` numbers each.

    Args:
        layers: Blocks: ``first``, ``middle`` (block ``n // 2`` of ``n``), ``last``, or indices
            from 0, negative ones from the end. A block that is named twice counts once.
        weight: α: one for all blocks, or one for each of ``layers``.
        kl_weight: β. With 0 the model runs no further than the last of the blocks.
        relative: Divide by the dense mean square; false for the paper's raw squared error.
        cache_mib: Memory for teacher probabilities, in MiB.
        chunk: Positions whose logits are computed at once; by default 512. A CPU computes them
            for 1,024 tokens of the vocabulary at a time.
    """

    layers: tuple[int | str, ...] = ("first", "middle", "last")
    weight: float | tuple[float, ...] = 1.0
    kl_weight: float = 1.0
    relative: bool = True
    cache_mib: int = 1024
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_kl_settings(self.cache_mib, self.chunk)
        if not isinstance(self.layers, tuple) or not self.layers:
            raise ValueError(f"layers must be a list of one block or more, not {self.layers!r}")
        for layer in self.layers:
            if isinstance(layer, bool) or not (isinstance(layer, int) or layer in _NAMED):
                raise ValueError(f"layers are first, middle, last or indices, not {layer!r}")
        if isinstance(self.weight, tuple) and len(self.weight) != len(self.layers):
            raise ValueError(
                f"weight needs one number, or {len(self.layers)} as layers: not {self.weight}"
            )
        if any(not (w > 0 and math.isfinite(w)) for w in self._all_weights()):
            raise ValueError(f"weight must be positive, not {self.weight}")
        if not (self.kl_weight >= 0 and math.isfinite(self.kl_weight)):
            raise ValueError(f"kl_weight must not be negative, not {self.kl_weight}")

    @torch.inference_mode()
    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:  # noqa: ARG002
        """Return a proxy that holds the dense model's hidden states of ``tokens``.

        Raises:
            ConfigError: ``layers`` names a block that the model does not have.
            ModelError: The model has no decoder blocks, or its head is not understood.
        """
        if self.kl_weight:
            check_head(dense, tokens)
        prefix, blocks = find_blocks(dense)
        weights = self._weights(len(blocks))
        whole = self.kl_weight > 0
        reader = _Reader(prefix, len(blocks), tuple(weights), whole)
        rows = range(len(tokens))
        read = [
            reader.read(dense, tokens[list(b)])
            for b in split_batches(dense, rows, tokens.shape[1])
        ]
        kept = {block: torch.cat([states[block] for states, _ in read]) for block in weights}
        last = [hidden for _, hidden in read if hidden is not None]
        kl = PoolDivergence(torch.cat(last), self.cache_mib, self.chunk) if last else None
        return _HiddenStateProxy(self, tokens, reader, _Dense(weights, kept, kl))

    def _all_weights(self) -> tuple[float, ...]:
        """Return α of each of ``layers``."""
        if isinstance(self.weight, tuple):
            return self.weight
        return (self.weight,) * len(self.layers)

    def _weights(self, n_blocks: int) -> dict[int, float]:
        """Return α by index of the block."""
        weights: dict[int, float] = {}
        for layer, weight in zip(self.layers, self._all_weights(), strict=True):
            index = _NAMED[layer](n_blocks) if isinstance(layer, str) else layer
            if not -n_blocks <= index < n_blocks:
                raise ConfigError(f"layers has block {index}, but the model has {n_blocks} blocks")
            weights.setdefault(index % n_blocks, weight)
        return weights


class _Enough(Exception):
    """Ends a forward pass after the last block that is read."""


@dataclass(frozen=True)
class _Reader:
    """Reads hidden states in one forward pass.

    Attributes:
        prefix: Name of the module list of blocks.
        n_blocks: Number of blocks.
        blocks: Indices of the blocks to read.
        whole: Whether to read the last hidden states too.
    """

    prefix: str
    n_blocks: int
    blocks: tuple[int, ...]
    whole: bool

    def read(self, model: nn.Module, tokens: Tensor) -> tuple[dict[int, Tensor], Tensor | None]:
        """Return the outputs of the blocks, and the last hidden states.

        Args:
            model: The model; no hook stays in it.
            tokens: ``(batch, length)`` int64.

        Returns:
            ``(batch, length, features)`` each, by index of the block; the last hidden states are
            None if ``whole`` is false.

        Raises:
            ModelError: The model has another number of blocks.
        """
        blocks = model.get_submodule(self.prefix)
        assert isinstance(blocks, nn.ModuleList)
        if len(blocks) != self.n_blocks:
            raise ModelError(
                f"hidden_state compares block with block: the model has {len(blocks)}, the dense "
                f"one {self.n_blocks}; use kl_divergence"
            )
        states: dict[int, Tensor] = {}
        shape = (tokens.shape[0], tokens.shape[1])
        handles = [
            blocks[i].register_forward_hook(self._make_hook(states, i, shape)) for i in self.blocks
        ]
        try:
            return states, compute_last_hidden(model, tokens)
        except _Enough:
            return states, None
        finally:
            for handle in handles:
                handle.remove()

    def _make_hook(
        self, states: dict[int, Tensor], block: int, shape: tuple[int, int]
    ) -> Callable[..., None]:
        is_last = not self.whole and block == max(self.blocks)

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            states[block] = arrange_hidden(output, shape)
            if is_last:
                raise _Enough

        return keep


@dataclass(frozen=True)
class _Dense:
    """The dense model's states and predictions.

    Attributes:
        weights: α by block.
        states: ``(n_sequences, length, hidden)`` by block.
        divergence: The divergence from its predictions; None if β is 0.
    """

    weights: dict[int, float]
    states: dict[int, Tensor]
    divergence: PoolDivergence | None


class _HiddenStateProxy(Proxy):
    def __init__(
        self, settings: HiddenStateEvaluator, tokens: Tensor, reader: _Reader, dense: _Dense
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._reader = reader
        self._dense = dense

    @torch.inference_mode()
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        parts: list[Tensor] = []
        for batch in split_batches(model, rows, self._tokens.shape[1]):
            states, last = self._reader.read(model, self._tokens[list(batch)])
            for i, row in enumerate(batch):
                part = self._error(row, {block: state[i] for block, state in states.items()})
                if self._dense.divergence is not None and last is not None:
                    kl = self._dense.divergence.measure(model, row, last[i])
                    part = part + self._settings.kl_weight * kl
                parts.append(part)
        return self.read_back(parts)

    def _error(self, row: int, states: dict[int, Tensor]) -> Tensor:
        """Return the weighted sum over blocks of one sequence's error, in float64."""
        errors = []
        for block, weight in self._dense.weights.items():
            dense = self._dense.states[block][row].float()
            error = _compute_mean_square(dense - states[block].float())
            if self._settings.relative:
                error = error / _compute_mean_square(dense)
            errors.append(weight * error)
        return torch.stack(errors).sum()


def _compute_mean_square(states: Tensor) -> Tensor:
    """Return the mean over tokens of the squared norm of ``(length, hidden)``, in float64."""
    return states.square().sum(dim=-1).double().mean()
