"""Trainable copies of a module's parameters, and how they are written back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsity_search.errors import NumericalError
from sparsity_search.recoveries.bases.forms import MakeForm


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a parameter is.

    Attributes:
        name: Its name within the whole module.
        module: The module that holds it.
        key: Its name there.
        parameter: The parameter.
    """

    name: str
    module: nn.Module
    key: str
    parameter: nn.Parameter


def list_slots(module: nn.Module) -> list[Slot]:
    """Return the floating-point parameters of a module, each once."""
    found: dict[int, Slot] = {}
    for prefix, part in module.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            if parameter.is_floating_point() and id(parameter) not in found:
                name = f"{prefix}.{key}" if prefix else key
                found[id(parameter)] = Slot(name, part, key, parameter)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class Trained:
    """A parameter that is trained.

    Attributes:
        parameter: The parameter, float32.
        size: Size of its entries, by which the rate of the optimiser is multiplied, so that one
            rate suits models of all widths; 1 for factors of a form.
    """

    parameter: nn.Parameter
    size: float = 1.0


@contextmanager
def training(
    module: nn.Module, masks: Mapping[str, Tensor], vectors: Sequence[str], make_form: MakeForm
) -> Iterator[list[Trained]]:
    """Make parameters of a module trainable inside; afterwards it holds their trained values.

    Trained numbers are float32. All other parameters stay as they are.

    Args:
        module: The module.
        masks: Which entries of weights are kept, by name of the parameter.
        vectors: Names of norms and biases, which are trained as they are.
        make_form: Form of the weights.

    Yields:
        What is trained.
    """
    slots = {slot.name: slot for slot in list_slots(module)}
    trained: list[Trained] = []
    changed: list[Slot] = []
    try:
        for name in vectors:
            parameter = slots[name].parameter
            parameter.data = parameter.data.float()
            trained.append(Trained(_begin(parameter), measure_size(parameter)))
        for name, kept in masks.items():
            slot = slots[name]
            form = make_form(slot.parameter, kept)
            own = [Trained(parameter) for parameter in form.parameters()]
            if not own:  # the weight itself is trained
                slot.parameter.data = slot.parameter.data.float()
                own = [Trained(_begin(slot.parameter), measure_size(slot.parameter))]
            trained += own
            parametrize.register_parametrization(slot.module, slot.key, form, unsafe=True)
            changed.append(slot)
        yield trained
    finally:
        for slot in changed:
            _replace_form(slot)
        for slot in slots.values():
            slot.parameter.requires_grad_(False)
            slot.parameter.grad = None


def measure_size(parameter: Tensor) -> float:
    """Return the root mean square of the entries that are not zero; 1 if there are none."""
    entries = parameter.detach()[parameter.detach() != 0].float()
    return float(entries.square().mean().sqrt()) if len(entries) else 1.0


def _begin(parameter: nn.Parameter) -> nn.Parameter:
    """Let gradients flow to a parameter."""
    parameter.requires_grad_(True)
    return parameter


@torch.no_grad()
def _replace_form(slot: Slot) -> None:
    """Replace the form of a weight by its value."""
    value = getattr(slot.module, slot.key).detach()
    parametrize.remove_parametrizations(slot.module, slot.key, leave_parametrized=False)
    slot.parameter.data = value


def compute_with(module: nn.Module) -> torch.autocast:
    """Return the context in which a module with trained numbers of float32 computes.

    Modules in half precision compute in bfloat16, whose range gradients do not leave.
    """
    parameter = next(module.parameters())
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(parameter.device.type, dtype=torch.bfloat16, enabled=half)


def fill_pattern(weight: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return a weight in the number type in which it is saved, with exactly its kept entries.

    Args:
        weight: The weight, finite.
        kept: Which entries are not zero; None if any may be.
        dtype: The number type.

    Raises:
        NumericalError: An entry leaves the range of the number type.
    """
    cast = weight.to(dtype)
    if not cast.isfinite().all():
        raise NumericalError(f"a trained weight leaves the range of {dtype}: train with less")
    if kept is None:
        return cast
    cast = torch.where(kept, cast, torch.zeros((), dtype=dtype, device=cast.device))
    return cast.masked_fill(kept & (cast == 0), torch.finfo(dtype).tiny)
