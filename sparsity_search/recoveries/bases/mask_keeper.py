"""Zeros that stay while transformers' `Trainer` trains a pruned model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.recoveries.bases.choosing import choose
from sparsity_search.recoveries.bases.trainable import list_slots

#: Part of the names of LoRA's own matrices, whose zeros are no pruned weights.
_ADAPTER = ".lora_"


class MaskKeeper(TrainerCallback):  # type: ignore[misc]
    """Keeps the zeros of a pruned model while transformers' `Trainer` trains it.

    Gradients of zeros are zero, and after each step zeros are set to zero again. A kept weight
    that becomes zero gets the least positive number, so that the pattern stays as it was. It is
    checked whenever the trainer saves, and at the end.

    Adapters of peft change weights only where they are kept: ``W + scaling (B A) * mask``, without
    the adapter's dropout. `merge-adapter` with ``--mask`` then merges them exactly.

    Args:
        model: The pruned model, or one with LoRA adapters of peft around it.
        exclude: Regular expression; layers whose name matches may change freely.

    Raises:
        ConfigError: The model has no zeros to keep, or is none.

    In a training loop of your own, call `apply` after each step of the optimiser, and `verify` at
    the end.

    >>> trainer = Trainer(model, …, callbacks=[MaskKeeper(model)])  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, exclude: str | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError("MaskKeeper needs the model itself, not its name")
        subject = PrunableModel(_unwrap(model), exclude)
        slots = {slot.name: slot.parameter for slot in list_slots(subject.model)}
        found = choose(subject, subject.model).masks
        masks = {name: kept for name, kept in found.items() if _ADAPTER not in name}
        self._kept = {name: (slots[name], kept) for name, kept in masks.items()}
        if all(bool(kept.all()) for _, kept in self._kept.values()):
            raise ConfigError("there are no zeros to keep: give a pruned model")
        for parameter, kept in self._kept.values():
            if parameter.requires_grad:
                parameter.register_hook(partial(torch.mul, kept))  # type: ignore[no-untyped-call]
        _mask_adapters(model, {id(parameter): kept for parameter, kept in self._kept.values()})

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Set zeros to zero after a step."""
        self.apply()

    def on_save(self, *_: Any, **__: Any) -> None:
        """Check the zeros of what was saved."""
        self.verify()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Check the zeros at the end."""
        self.verify()

    @torch.no_grad()
    def apply(self) -> None:
        """Set zeros to zero, and kept weights that are zero to the least positive number."""
        for parameter, kept in self._kept.values():
            least = torch.finfo(parameter.dtype).tiny
            parameter.masked_fill_(~kept, 0.0)
            parameter.masked_fill_(kept & (parameter == 0), least)

    def verify(self) -> None:
        """Check that the zeros are those of the pruned model.

        Raises:
            ProfileError: They are not; names the first weight.
        """
        for name, (parameter, kept) in self._kept.items():
            if not torch.equal(parameter.detach() != 0, kept.to(parameter.device)):
                raise ProfileError(f"{name} has lost its pattern of zeros in training")


def _unwrap(model: Any) -> nn.Module:
    """Return the model of transformers in a model of peft."""
    get = getattr(model, "get_base_model", None)
    found: nn.Module = model if get is None else get()
    return found


def _mask_adapters(model: nn.Module, masks: dict[int, Tensor]) -> None:
    """Let LoRA layers of peft change only kept weights."""
    for layer in model.modules():
        base: Any = getattr(layer, "base_layer", None)
        kept = masks.get(id(getattr(base, "weight", None)))
        if kept is not None and hasattr(layer, "get_delta_weight"):
            layer.forward = _build_forward(layer, kept)


def _build_forward(layer: Any, kept: Tensor) -> Any:
    def forward(inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        base = layer.base_layer
        if layer.disable_adapters or layer.merged:
            result: Tensor = base(inputs)
            return result
        change = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
        weight = base.weight + (change * kept).to(base.weight.dtype)
        return nn.functional.linear(inputs, weight, base.bias)

    return forward
