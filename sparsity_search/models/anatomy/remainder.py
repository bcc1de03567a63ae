"""What pruning leaves alone in a model, and why; and which weights have more than one name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from sparsity_search.models.anatomy.prunable import PrunableModel

_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)(\.|$)|[Rr]outer$")


@dataclass(frozen=True)
class LeftAlone:
    """A parameter that no unit holds, or units that are excluded.

    Attributes:
        name: Of the parameter, or of the unit.
        weights: How many weights it has; those with several names count once.
        why: Why it is left alone, in a few words.
    """

    name: str
    weights: int
    why: str


def left_alone(subject: PrunableModel) -> list[LeftAlone]:
    """Return all that no unit holds; with the units, these are all weights of the model."""
    model = subject.model
    pruned = {id(parameter) for parameter in subject.parameters()}
    found, excluded = [], set()
    for name, view in subject.excluded.items():
        count, cost = view.size
        excluded |= {id(parameter) for parameter in view.parameters()}
        found.append(LeftAlone(name, count * cost, "excluded by --exclude"))
    for name, parameter in model.named_parameters():
        if id(parameter) not in pruned | excluded:
            found.append(LeftAlone(name, parameter.numel(), _why(subject, name, parameter)))
    return found


def shared_names(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of each parameter that has more than one, as tied weights have."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [tuple(several) for several in names.values() if len(several) > 1]


def _why(subject: PrunableModel, name: str, parameter: Tensor) -> str:
    model = subject.model
    place, _, leaf = name.rpartition(".")
    module = model.get_submodule(place)
    if isinstance(module, nn.Embedding):
        return "embedding"
    if module is model.get_output_embeddings():  # type: ignore[operator]
        return "head"
    kind = type(module).__name__
    if "norm" in kind.lower():
        return "norm"
    if leaf.endswith("bias"):
        return "bias"
    if not name.startswith(f"{subject.prefix}."):
        return "outside of the blocks"
    if _ROUTER.search(place) or "Router" in kind:
        return "router"
    if parameter.dim() < 2:
        return "no matrix"
    if subject.units == "weights":
        return "no linear layer"
    return f"of no unit of the kind {subject.units}"
