"""Routers of mixtures, and all tensors that have an entry for each expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.experts import ExpertMixture

#: Names of the number of experts in modules.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "out_features")
#: Names of the number of experts of a token, in modules and configurations.
_TOP_K = ("top_k", "num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k")
#: Names of the number of groups of experts in modules.
_GROUPS = ("num_group", "n_group")
#: Experts of a group from which its score is made, in routers that choose groups first.
_SCORED = 2


@dataclass(frozen=True, eq=False)
class ExpertTensor:
    """A parameter or buffer with an entry for each expert.

    Attributes:
        module: The module that holds it.
        name: Its name there.
        axis: The axis of the experts.
    """

    module: nn.Module
    name: str
    axis: int = 0

    @property
    def tensor(self) -> Tensor:
        """The tensor as it is stored."""
        tensor = getattr(self.module, self.name)
        assert isinstance(tensor, Tensor)
        return tensor

    def entries(self, tensor: Tensor) -> Tensor:
        """Return values or gradient of the tensor, in its shape, as ``(experts, numbers)``."""
        return tensor.movedim(self.axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]

    def assign(self, entries: Tensor) -> None:
        """Set the entries, ``(experts, …)``; their number may differ from before.

        The tensor stays the same object.
        """
        tensor = self.tensor
        _, *rest = tensor.movedim(self.axis, 0).shape
        values = entries.reshape(len(entries), *rest).movedim(0, self.axis)
        if tensor.shape == values.shape:
            tensor.detach().copy_(values)
            return
        with torch.inference_mode(False):  # tensors made in inference mode cannot be written later
            fresh = torch.empty(values.shape, dtype=tensor.dtype, device=tensor.device)
            tensor.data = fresh.copy_(values)


@dataclass(frozen=True, eq=False)
class Router:
    """The router of a mixture.

    Attributes:
        rows: Its weight, ``(experts, inputs)``.
        others: Its other tensors with entries, such as biases that correct the choice.
        top_k: Number of experts that each token is routed to.
        groups: Number of groups, from some of which each token's experts are chosen; 1 for none.
        least: Fewest experts that a group must have.
        modules: Modules that know the number of experts.
    """

    rows: ExpertTensor
    others: Sequence[ExpertTensor]
    top_k: int
    groups: int
    least: int
    modules: Sequence[nn.Module]

    def set_count(self, before: int, after: int) -> None:
        """Set the number of experts where modules know it."""
        for module in self.modules:
            for name in _COUNTS:
                if module.__dict__.get(name) == before:
                    setattr(module, name, after)


def find_router(mixture: ExpertMixture) -> Router:
    """Return the router of a mixture whose experts are in a bank.

    Raises:
        ModelError: There is none whose weight has a row for each expert, or it is not understood.
    """
    count, where = mixture.count, mixture.name
    for module in mixture.routers():
        entries = list(_find_entries(module, count, where))
        rows = [entry for entry in entries if entry.axis == 0 and entry.tensor.ndim > 1]
        if len(rows) == 1:
            break
    else:
        raise ModelError(
            f"the router of {where} has no weight with a row for each of the {count} experts, so "
            "whole experts cannot be removed: choose --units weights"
        )
    own = list(_find_entries(mixture.module, count, where, recurse=False))
    places: list[Any] = [module, mixture.module]
    configs = [getattr(place, "config", None) for place in places]
    top_k = _find_number(_TOP_K, [*places, *configs])
    if top_k is None:
        raise ModelError(
            f"the router of {where} does not say how many experts a token is routed to, so whole "
            "experts cannot be removed: choose --units weights"
        )
    groups = _find_number(_GROUPS, places)
    chosen = _find_number(("topk_group",), places) or groups or 1
    return Router(
        rows=rows[0],
        others=[entry for entry in (*entries, *own) if entry is not rows[0]],
        top_k=top_k,
        groups=groups or 1,
        least=max(-(-top_k // chosen), _SCORED if groups else 1),
        modules=[mixture.module, *mixture.experts.modules(), *module.modules()],
    )


def find_expert_tensors(mixture: ExpertMixture) -> list[ExpertTensor]:
    """Return the tensors with entries beside the experts' matrices, such as their biases."""
    assert mixture.bank is not None
    matrices = {id(parameter) for parameter in mixture.bank.parameters()}
    found = _find_entries(mixture.experts, mixture.count, mixture.name)
    return [entry for entry in found if id(entry.tensor) not in matrices]


def _find_entries(
    module: nn.Module, count: int, where: str, *, recurse: bool = True
) -> Iterator[ExpertTensor]:
    """Yield the tensors of a module whose first axis, or only axis of length not 1, is experts."""
    for part in module.modules() if recurse else (module,):
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, tensor in own:
            if not tensor.is_floating_point():
                raise ModelError(
                    f"the experts of {where} are chosen by whole numbers ({name}), such as a "
                    "table, so whole experts cannot be removed: choose --units weights"
                )
            if tensor.ndim and len(tensor) == count:
                yield ExpertTensor(part, name)
            elif tensor.shape == (1, count):
                yield ExpertTensor(part, name, axis=1)


def _find_number(names: Sequence[str], places: Sequence[Any]) -> int | None:
    """Return the first whole number of one of these names."""
    found = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in found if isinstance(value, int)), None)
