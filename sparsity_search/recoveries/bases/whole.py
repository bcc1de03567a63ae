"""Training of a whole pruned model on a loss of its predictions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from sparsity_search.interfaces.recovery import Recovered, RecoveryProblem
from sparsity_search.models.anatomy.blocks import replace_forwards
from sparsity_search.models.running.head import compute_last_hidden, compute_logits
from sparsity_search.recoveries.bases.choosing import choose
from sparsity_search.recoveries.bases.forms import MakeForm
from sparsity_search.recoveries.bases.schedule import StepBudget, group_by_size, set_rate
from sparsity_search.recoveries.bases.trainable import (
    Trained,
    compute_with,
    fill_pattern,
    list_slots,
    training,
)
from sparsity_search.utils.random import create_generator

#: A loss: of the next tokens, or the divergence from the dense model's predictions.
Loss = Literal["next_token", "kl"]
#: Positions whose logits are in memory at once, with their gradients.
_POSITIONS = 256
#: Seconds between two copies of an unfinished training.
_EVERY = 60.0
#: The part of the progress that holds them.
_PART = "training"


@dataclass(frozen=True)
class WholeTraining:
    """How a whole model is trained.

    Attributes:
        steps: Number of steps, at most; fewer if the time is short.
        rate: Greatest step of AdamW, relative to the size of the weights.
        batch: Sequences of a step.
        loss: What is minimised.
        make_form: Form of the weights.
        checkpointing: Whether blocks run again in the backward pass, to save memory.
    """

    steps: int
    rate: float
    batch: int
    loss: Loss
    make_form: MakeForm
    checkpointing: bool = False


class ModelTraining:
    """Training of the kept weights of a whole model.

    Args:
        problem: The models and the text.
        how: How the model is trained.
    """

    def __init__(self, problem: RecoveryProblem, how: WholeTraining) -> None:
        problem.subject.check_not_offloaded()
        problem.dense.check_not_offloaded()
        self._problem, self._how = problem, how
        self._model: nn.Module = problem.subject.model
        self._device = next(self._model.parameters()).device
        self._computing = compute_with(self._model)  # before numbers are float32

    def run(self) -> Recovered:
        """Train, and return the loss on the held-out text before and after.

        Raises:
            ConfigError: A model is offloaded.
        """
        subject = self._problem.subject
        chosen = choose(subject, self._model)
        slots = {slot.name: slot.parameter for slot in list_slots(self._model)}
        names = [*chosen.masks, *chosen.vectors]
        first = {name: slots[name].data for name in names}
        before = self._measure()
        with ExitStack() as stack:
            if self._how.checkpointing:
                blocks = subject.blocks
                again = [partial(checkpoint, b.forward, use_reentrant=False) for b in blocks]
                stack.enter_context(replace_forwards(blocks, again))
            trained = stack.enter_context(
                training(self._model, chosen.masks, chosen.vectors, self._how.make_form)
            )
            after = self._fit(trained, before)
        for name in names:
            dtype, value = first[name].dtype, first[name]
            if after < before:
                mask = chosen.masks.get(name)
                value = fill_pattern(slots[name].data, mask, subject.saved_as or dtype).to(dtype)
            slots[name].data = value
        gained = after < before
        return Recovered(before, after, [] if gained else ["no gain: the weights are kept"])

    def _fit(self, trained: Sequence[Trained], before: float) -> float:
        """Train, keep the best values, and return their held-out loss."""
        how, problem = self._how, self._problem
        parameters = [each.parameter for each in trained]
        optimiser = torch.optim.AdamW(group_by_size(trained), betas=(0.9, 0.95), weight_decay=0)
        state = _State(parameters, optimiser, before)
        state.restore(problem.progress.load(_PART))
        budget = StepBudget(how.steps, problem.seconds_left(), state.step)
        kept_at = time.monotonic()
        while (step := budget.next()) is not None:
            order = create_generator(problem.seed, "recovery", step)
            rows = order.choice(len(problem.tokens), min(how.batch, len(problem.tokens)), False)
            set_rate(optimiser, how.rate * budget.rate(step))
            optimiser.zero_grad(set_to_none=True)
            for row in rows:
                with torch.enable_grad():
                    torch.autograd.backward(self._compute(problem.tokens[row]) / len(rows))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            state.step = step + 1
            if budget.is_check(step):
                state.judge(self._measure())
            if time.monotonic() - kept_at > _EVERY:
                problem.progress.keep(_PART, state.to_tensors())
                kept_at = time.monotonic()
            problem.advance()
        if budget.unchecked:
            state.judge(self._measure())
        state.take_best()
        return state.loss

    @torch.no_grad()
    def _measure(self) -> float:
        """Return the mean loss on the held-out text."""
        losses = [self._compute(sequence) for sequence in self._problem.held_out]
        return float(torch.stack(losses).mean())

    def _compute(self, sequence: Tensor) -> Tensor:
        """Return the mean loss of one sequence, in nats a token."""
        tokens = sequence[None].to(self._device)
        # weights that were read once would differ from those that are read again
        cached = nullcontext() if self._how.checkpointing else parametrize.cached()
        with self._computing, cached:
            hidden = compute_last_hidden(self._model, tokens)[0, :-1]
        teacher = None
        if self._how.loss == "kl":
            with torch.no_grad():
                teacher = compute_last_hidden(self._problem.dense.model, tokens)[0, :-1]
        targets = tokens[0, 1:]
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), _POSITIONS):
            part = slice(start, start + _POSITIONS)
            other = targets[part] if teacher is None else teacher[part]
            total = total + checkpoint(self._sum_loss, hidden[part], other, use_reentrant=False)
        return total / len(targets)

    def _sum_loss(self, hidden: Tensor, other: Tensor) -> Tensor:
        """Return the summed loss of some positions, given targets or the dense model's states."""
        with self._computing:
            scores = compute_logits(self._model, hidden).float()
        if not other.is_floating_point():
            return nn.functional.cross_entropy(scores, other, reduction="sum")
        with torch.no_grad():
            expected = compute_logits(self._problem.dense.model, other).float().log_softmax(-1)
        actual = scores.log_softmax(-1)
        return nn.functional.kl_div(actual, expected, reduction="sum", log_target=True)


class _State:
    """The values that are trained, the best ones, and the optimiser's moments."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, loss: float
    ) -> None:
        self._parameters, self._optimiser = parameters, optimiser
        self._best = [parameter.detach().clone() for parameter in parameters]
        self.loss, self.step = loss, 0

    def judge(self, loss: float) -> None:
        """Keep the present values if their held-out loss is the least so far."""
        if loss < self.loss:
            self.loss = loss
            for best, parameter in zip(self._best, self._parameters, strict=True):
                best.copy_(parameter.detach())

    def take_best(self) -> None:
        """Set the values to the best ones."""
        for best, parameter in zip(self._best, self._parameters, strict=True):
            parameter.data.copy_(best)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all as tensors by name."""
        found = {"step": torch.tensor(self.step), "loss": torch.tensor(self.loss).double()}
        for number, parameter in enumerate(self._parameters):
            found[f"value.{number}"] = parameter.detach()
            found[f"best.{number}"] = self._best[number]
            for key, moment in self._optimiser.state[parameter].items():
                found[f"{key}.{number}"] = moment
        return found

    def restore(self, stored: Mapping[str, Tensor] | None) -> None:
        """Take all from tensors by name."""
        if stored is None:
            return
        self.step, self.loss = int(stored["step"]), float(stored["loss"])
        for number, parameter in enumerate(self._parameters):
            parameter.data.copy_(stored[f"value.{number}"])
            self._best[number].copy_(stored[f"best.{number}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = stored[f"{key}.{number}"]
                device = parameter.device if key != "step" else value.device
                self._optimiser.state[parameter][key] = value.to(device)
