"""Inputs and output gradients of linear layers, recorded in backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.linears import LinearCallMode
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import WeightView
from sparsity_search.utils.random import derive_seed

#: Sequences per forward pass; their graph is in memory until the backward passes are done.
BATCH = 2


class BackwardPass(NamedTuple):
    """One backward pass.

    Attributes:
        gradient: Gradient of an objective with respect to the logits,
            ``(batch, length, vocabulary)``.
        summed: Whether to sum the layers' weight gradients over all positions. Otherwise inputs
            and output gradients are kept at some positions.
    """

    gradient: Tensor
    summed: bool = False


#: Yields the backward passes for the sequences in a slice, given their logits.
Differentiate = Callable[[Tensor, slice], Iterable[BackwardPass]]


@dataclass(eq=False)
class LayerRecording:
    """Recorded data of one linear layer.

    Attributes:
        inputs: Inputs at the kept positions, ``(n, inputs)`` per batch, in the model's dtype;
            layers that read the same tensor share one copy.
        gradients: Gradients with respect to the outputs there, ``(n, outputs)`` per batch.
        weight: Sum of weight gradients, ``(outputs, inputs)`` float32; None without summed passes.
        bias: Sum of output gradients, ``(outputs,)`` float32; None without summed passes.
    """

    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    weight: Tensor | None = None
    bias: Tensor | None = None


#: Recording of each layer.
Recordings = Mapping[nn.Module, LayerRecording]


def record(
    subject: PrunableModel, tokens: Tensor, positions: Tensor, differentiate: Differentiate
) -> Recordings:
    """Record all linear layers through which the units act.

    Parameters need no gradients: the backward passes run through the activations alone.

    Args:
        subject: The model; unchanged afterwards.
        tokens: ``(n_sequences, length)`` int64.
        positions: Positions to keep in each sequence, ``(n,)`` int64.
        differentiate: Yields the backward passes.

    Raises:
        ConfigError: A unit is not made of linear layers, or is not used in the forward pass, or
            the model is offloaded.
    """
    subject.check_not_offloaded()
    tape = _Tape(positions)
    linears = find_affected_linears(subject)
    recordings = {linear: LayerRecording() for linear in linears}
    device = next(subject.model.parameters()).device
    handles = [m.register_forward_hook(tape.tap(recordings[m])) for m in linears]
    handles.append(subject.blocks[0].register_forward_pre_hook(_start_graph, with_kwargs=True))
    try:
        for start in range(0, len(tokens), BATCH):
            rows = slice(start, min(start + BATCH, len(tokens)))
            tape.sequences = rows.stop - start
            with torch.enable_grad(), LinearCallMode(subject.model):
                logits = subject.model(input_ids=tokens[rows].to(device), use_cache=False).logits
            for backward in differentiate(logits.detach(), rows):
                tape.summed = backward.summed
                torch.autograd.backward(logits, backward.gradient, retain_graph=True)
            del logits
    finally:
        tape.forget()
        for handle in handles:
            handle.remove()
    if not all(r.gradients or r.bias is not None for r in recordings.values()):
        raise ConfigError(
            "this method needs units that the forward pass uses, but it does not use the layer "
            "of one: leave that unit out with --exclude"
        )
    return recordings


def find_affected_linears(subject: PrunableModel) -> set[nn.Module]:
    """Return the linear layers through which the units act.

    Raises:
        ConfigError: A unit is not made of linear layers.
    """
    views = subject.views.values()
    return {effect.linear for view in views for effect in view.effects(view.read())}


def compute_slopes(view: WeightView, change: Tensor, recordings: Recordings) -> Tensor:
    """Return the directional derivative along a change of one unit, at each kept position.

    At position ``t`` it is ``g_t · (ΔW x_t)``, with the input ``x_t`` and the output gradient
    ``g_t`` of the linear layer, summed over all layers through which the unit acts.

    Args:
        view: The unit.
        change: ΔW, of the shape of ``view.read()``.
        recordings: Recordings of its layers.

    Returns:
        ``(n,)`` float32.
    """
    total = torch.zeros(())
    for effect in view.effects(change):
        recording = recordings[effect.linear]
        parts = [
            torch.linalg.vecdot(effect.outputs(inputs).float(), gradients.float())
            for inputs, gradients in zip(recording.inputs, recording.gradients, strict=True)
        ]
        total = total + torch.cat(parts)
    return total


def compute_total_slope(view: WeightView, change: Tensor, recordings: Recordings) -> float:
    """Return the directional derivative along a change of one unit, summed over all positions."""
    total = 0.0
    for effect in view.effects(change):
        recording = recordings[effect.linear]
        assert recording.weight is not None
        assert recording.bias is not None
        columns = slice(None) if effect.columns is None else effect.columns
        total += float((recording.weight[:, columns] * effect.weight).sum())
        if effect.bias is not None:
            total += float(recording.bias @ effect.bias.float())
    return total


def choose_positions(length: int, positions: int, span: int) -> Tensor:
    """Return evenly spaced runs of ``span`` consecutive positions, about ``positions`` in total.

    >>> choose_positions(12, 4, 2).tolist()
    [2, 3, 8, 9]
    """
    number = max(1, min(positions, length) // span)
    room = length // number
    starts = torch.arange(number) * room + (room - span) // 2
    return (starts[:, None] + torch.arange(span)).flatten()


def draw_labels(logits: Tensor, draws: int, seed: int, *keys: str | int) -> Iterator[BackwardPass]:
    """Yield the gradient of the log-likelihood of labels drawn from the predictions themselves.

    Args:
        logits: ``(batch, length, vocabulary)``.
        draws: Number of labels drawn at each position, with one backward pass each.
        seed: Seed of the draws.
        keys: Keys that distinguish the draws of this batch from others.

    Raises:
        NumericalError: The predictions are not finite.
    """
    generator = torch.Generator(logits.device)
    generator.manual_seed(derive_seed(seed, "labels", *keys))
    probabilities = logits.float().softmax(-1)
    if not probabilities.isfinite().all():  # draws from them would stop a CUDA device
        raise NumericalError("the model's predictions are not finite")
    for _ in range(draws):
        drawn = torch.rand(*logits.shape[:2], 1, generator=generator, device=logits.device)
        labels = torch.stack(list(map(_find_labels, probabilities, drawn)))
        ones = torch.ones_like(labels, dtype=probabilities.dtype)
        yield BackwardPass((-probabilities).scatter_add_(2, labels, ones).to(logits.dtype))


def _find_labels(probabilities: Tensor, drawn: Tensor) -> Tensor:
    """Return the tokens at which the sum of probabilities passes drawn numbers, ``(length, 1)``.

    Several times as fast as ``torch.multinomial``, which draws a number for each token.

    Args:
        probabilities: ``(length, vocabulary)``.
        drawn: Numbers in [0, 1), ``(length, 1)``.
    """
    sums = probabilities.cumsum(-1)
    labels = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)
    return labels.clamp_(max=probabilities.shape[-1] - 1)


def _start_graph(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make the first block's input the leaf of the graph: no parameter needs a gradient."""
    if args:
        return (args[0].detach().requires_grad_(True), *args[1:]), kwargs
    states = kwargs["hidden_states"].detach().requires_grad_(True)
    return args, {**kwargs, "hidden_states": states}


class _Tape:
    """Source of the hooks, which share the positions and the copies of common inputs.

    Attributes:
        summed: Whether the current backward pass is summed, see `BackwardPass`.
        sequences: Number of sequences in the current batch.
    """

    def __init__(self, positions: Tensor) -> None:
        self.summed = False
        self.sequences = 0
        self._positions = positions
        self._last: tuple[Tensor | None, Tensor]
        self.forget()

    def tap(
        self, recording: LayerRecording
    ) -> Callable[[nn.Module, Sequence[Tensor], Tensor], None]:
        """Return a forward hook that fills a recording in the backward passes."""

        def tapped(_: nn.Module, args: Sequence[Tensor], output: Tensor) -> None:
            inputs = args[0].detach()
            at_positions = self._copy(args[0])

            def keep(gradient: Tensor) -> None:
                if self.summed:
                    _add(recording, inputs.flatten(0, -2), gradient.flatten(0, -2))
                else:
                    recording.inputs.append(at_positions)
                    recording.gradients.append(self._cut(gradient))

            output.register_hook(keep)  # type: ignore[no-untyped-call]

        return tapped

    def forget(self) -> None:
        """Drop the graph, whose hooks refer to this tape: otherwise neither is ever freed."""
        self._last = (None, torch.empty(0))

    def _copy(self, tensor: Tensor) -> Tensor:
        """Return a copy at the kept positions; consecutive layers that read a tensor share it."""
        if self._last[0] is not tensor:
            self._last = (tensor, self._cut(tensor))
        return self._last[1]

    def _cut(self, tensor: Tensor) -> Tensor:
        """Return a copy at the kept positions; some layers get all sequences as one row."""
        by_sequence = tensor.detach().reshape(self.sequences, -1, tensor.shape[-1])
        return by_sequence[:, self._positions.to(tensor.device)].flatten(0, 1)


def _add(recording: LayerRecording, inputs: Tensor, gradients: Tensor) -> None:
    """Add the weight gradient of one batch."""
    parts = {"weight": (gradients.T @ inputs).float(), "bias": gradients.float().sum(0)}
    for name, part in parts.items():
        total = getattr(recording, name)
        setattr(recording, name, part if total is None else total.add_(part))
