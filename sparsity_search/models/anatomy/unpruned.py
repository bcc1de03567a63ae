"""Weights that pruning leaves unchanged, with the reasons, and weights with several names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from sparsity_search.models.anatomy.prunable import PrunableModel

_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)(\.|$)|[Rr]outer$")


@dataclass(frozen=True)
class UnprunedParameter:
    """A parameter outside of all units, or an excluded unit.

    Attributes:
        name: Name of the parameter or unit.
        weights: Number of its weights; weights with several names count once.
        why: Reason why it is not pruned, in a few words.
    """

    name: str
    weights: int
    why: str


def list_unpruned(subject: PrunableModel) -> list[UnprunedParameter]:
    """Return all weights outside of the units; together they are all weights of the model."""
    model = subject.model
    pruned = {id(parameter) for parameter in subject.parameters()}
    result, excluded = [], set()
    for name, view in subject.excluded.items():
        count, cost = view.size
        excluded |= {id(parameter) for parameter in view.parameters()}
        result.append(UnprunedParameter(name, count * cost, "excluded by --exclude"))
    for name, parameter in model.named_parameters():
        if id(parameter) not in pruned | excluded:
            result.append(
                UnprunedParameter(name, parameter.numel(), _explain(subject, name, parameter))
            )
    return result


def find_shared_names(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of each parameter with more than one name, e.g. tied weights."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [tuple(several) for several in names.values() if len(several) > 1]


def _explain(subject: PrunableModel, name: str, parameter: Tensor) -> str:
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
