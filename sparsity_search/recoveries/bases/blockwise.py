"""Reconstruction of one block after the other, with the optimiser of one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsity_search.interfaces.recovery import Recovered, RecoveryProblem
from sparsity_search.models.anatomy.linears import LinearCallMode
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream
from sparsity_search.recoveries.bases.choosing import Chosen
from sparsity_search.recoveries.bases.forms import MakeForm
from sparsity_search.recoveries.bases.schedule import StepBudget, group_by_size, set_rate
from sparsity_search.recoveries.bases.trainable import (
    compute_with,
    fill_pattern,
    list_slots,
    training,
)
from sparsity_search.utils.random import create_generator

#: Share of the time that is for training; the rest is for running the blocks.
_TRAINED = 0.8


@dataclass(frozen=True)
class BlockTraining:
    """How the blocks are trained.

    Attributes:
        steps: Steps of each block, at most; fewer if the time is short.
        rate: Greatest step of Adam, relative to the size of the weights.
        batch: Sequences of a step.
        dense_inputs: Whether the targets are the dense block's outputs for the dense model's own
            inputs, so that a block makes up for those before it; else for the pruned inputs.
        make_form: Returns the form of the weights of a block, by its index.
        choose: Returns what is trained of a block.
    """

    steps: int
    rate: float
    batch: int
    dense_inputs: bool
    make_form: Callable[[int], MakeForm]
    choose: Callable[[nn.Module], Chosen]


class BlockReconstruction:
    """The walk over the blocks of a pruned and of the dense model.

    The error of a block is the squared distance of its output from the target, divided by the
    squared length of the target, averaged over tokens, see `compute_error`.

    Args:
        problem: The models and the text.
        how: How blocks are trained.
    """

    def __init__(self, problem: RecoveryProblem, how: BlockTraining) -> None:
        self._problem, self._how = problem, how
        rows = torch.cat([problem.tokens, problem.held_out])
        self._pruned = BlockRunner(problem.subject, rows, at_once=1)
        self._dense = BlockRunner(problem.dense, rows, at_once=1)
        self._n_trained = len(problem.tokens)

    def run(self) -> Recovered:
        """Train all blocks, and return the error of the last one before and after."""
        subject, notes = self._problem.subject, []
        pruned, dense = self._pruned.embed(), self._dense.embed()
        plain = pruned[self._n_trained :]  # of the model without recovery
        n_blocks = len(subject.blocks)
        for block in range(n_blocks):
            inputs = dense if self._how.dense_inputs else pruned
            target = self._dense.run(block, inputs)
            dense = target if self._how.dense_inputs else dense
            with subject.present(block):
                plain = self._pruned.run(block, plain)
                note = self._train(block, pruned, target)
            notes += [note] if note else []
            pruned = self._pruned.run(block, pruned)
            self._problem.advance()
        held_out = target[self._n_trained :]
        scale = compute_scale(target[: self._n_trained])
        before, after = (
            _measure(streams, held_out, scale) for streams in (plain, pruned[self._n_trained :])
        )
        return Recovered(before, after, notes)

    def _train(self, block: int, inputs: Sequence[Stream], target: Sequence[Stream]) -> str:
        """Train a block, unless an earlier run did; return a remark."""
        problem, module = self._problem, self._problem.subject.blocks[block]
        part = f"block-{block:04}"
        slots = {slot.name: slot.parameter for slot in list_slots(module)}
        if (known := problem.progress.load(part)) is not None:
            for name, value in known.items():
                slots[name].data.copy_(value)
            return ""
        chosen = self._how.choose(module)
        if not chosen.masks and not chosen.vectors:
            return ""
        names = [*chosen.masks, *chosen.vectors]
        first = {name: slots[name].data.clone() for name in names}
        trained = _Trained(module, block, inputs, target, self._n_trained)
        gained = self._fit(trained, chosen)
        saved = problem.subject.saved_as
        for name in names:
            dtype, value = first[name].dtype, first[name]
            if gained:
                full = fill_pattern(slots[name].data, chosen.masks.get(name), saved or dtype)
                value = full.to(dtype)
            slots[name].data = value
        problem.progress.keep(part, {name: slots[name].data for name in names})
        return "" if gained else f"block {block} kept its weights: no gain on held-out text"

    def _fit(self, trained: _Trained, chosen: Chosen) -> bool:
        """Train a block in float32; return whether its held-out error fell, and keep the best."""
        how, problem = self._how, self._problem
        before = trained.measure_held_out()
        best, state = before, None
        with training(
            trained.module, chosen.masks, chosen.vectors, how.make_form(trained.block)
        ) as found:
            parameters = [each.parameter for each in found]
            optimiser = torch.optim.Adam(group_by_size(found), betas=(0.9, 0.95))
            left = problem.seconds_left() / (len(problem.subject.blocks) - trained.block)
            budget = StepBudget(how.steps, _TRAINED * left)
            order = create_generator(problem.seed, "recovery", trained.block)
            while (step := budget.next()) is not None:
                rows = order.choice(self._n_trained, min(how.batch, self._n_trained), False)
                set_rate(optimiser, how.rate * budget.rate(step))
                trained.step(rows.tolist(), optimiser)
                if budget.is_check(step):
                    error = trained.measure_held_out()
                    if error >= best and state is not None:
                        break  # it over-fits
                    if error < best:
                        best, state = error, [p.detach().clone() for p in parameters]
            if budget.unchecked and trained.measure_held_out() < best:
                state = [p.detach() for p in parameters]
            if state is not None:
                for parameter, value in zip(parameters, state, strict=True):
                    parameter.data.copy_(value)
        return state is not None


class _Trained:
    """A block with its inputs and targets, sequence by sequence."""

    def __init__(
        self,
        module: nn.Module,
        block: int,
        inputs: Sequence[Stream],
        target: Sequence[Stream],
        n_trained: int,
    ) -> None:
        self.module, self.block = module, block
        self._inputs, self._target, self._n_trained = inputs, target, n_trained
        self._device = next(module.parameters()).device
        self._computing = compute_with(module)  # before numbers are float32
        self._scale = _leave_inference(compute_scale(target[:n_trained]).to(self._device))

    def step(self, rows: Sequence[int], optimiser: torch.optim.Optimizer) -> None:
        """Make one step of the optimiser on some sequences."""
        optimiser.zero_grad(set_to_none=True)
        for row in rows:
            with torch.enable_grad():
                torch.autograd.backward(self._error(row) / len(rows))
        optimiser.step()

    @torch.no_grad()
    def measure_held_out(self) -> float:
        """Return the mean error of the sequences that are not trained on."""
        rows = range(self._n_trained, len(self._inputs))
        return float(torch.stack([self._error(row) for row in rows]).mean())

    def _error(self, row: int) -> Tensor:
        with self._computing, parametrize.cached(), LinearCallMode(self.module):
            output = self._inputs[row].call(self.block, self.module, _leave_inference)
        target = _leave_inference(self._target[row].hidden.to(self._device))
        return compute_error(output.hidden.to(self._device), target, self._scale)


def _measure(streams: Sequence[Stream], target: Sequence[Stream], scale: Tensor) -> float:
    """Return the mean error of some sequences."""
    pairs = zip(streams, target, strict=True)
    errors = [compute_error(s.hidden, t.hidden, scale) for s, t in pairs]
    return float(torch.stack(errors).mean())


def compute_error(output: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Return the relative error of hidden states, averaged over tokens.

    Features are divided by their scale, since a few of them may be a thousand times as large as
    the others (in Gemma 3), and would drown these.

    Args:
        output: ``(batch, length, features)``.
        target: Of the same shape.
        scale: Usual size of each feature, ``(features,)``.
    """
    wanted = target.float() / scale
    distance = (output.float() / scale - wanted).square().sum(-1)
    return (distance / wanted.square().sum(-1).clamp_min(1e-12)).mean()


def compute_scale(target: Sequence[Stream]) -> Tensor:
    """Return the mean absolute value of each feature over all tokens, ``(features,)``."""
    sizes = [stream.hidden.float().abs().mean((0, 1)) for stream in target]
    return torch.stack(sizes).mean(0).clamp_min(1e-9)


def _leave_inference(tensor: Tensor) -> Tensor:
    """Return a tensor that gradients may be computed with."""
    return tensor.clone() if tensor.is_inference() else tensor
