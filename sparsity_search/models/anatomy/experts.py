"""Mixtures of experts: their place in a block, and views of their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.banks import Bank, find_bank
from sparsity_search.models.anatomy.views import LinearEffect, LinearView, WeightView

#: Names of the router in modules.
_ROUTERS = ("gate", "router")
#: Pattern in the names of experts or of their classes.
_EXPERTS = re.compile("expert|moe", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ExpertMixture:
    """A mixture of experts.

    Attributes:
        name: Name of its module, relative to the module that was searched.
        module: The module that holds experts and router.
        experts: The module that holds the experts: a bank, or a list of modules.
        bank: Storage of the experts' parameters; None for a list of modules.
    """

    name: str
    module: nn.Module
    experts: nn.Module
    bank: Bank | None

    def gates(self) -> set[nn.Module]:
        """Return the modules that compute the experts' gate weights; they are not pruned."""
        gates = {module for router in self.routers() for module in router.modules()}
        for child in self.module.children():
            if isinstance(child, nn.Linear) and child.out_features in (1, self.count):
                gates.add(child)
        return gates - set(self.experts.modules())

    def routers(self) -> list[nn.Module]:
        """Return the modules that may choose a token's experts, by their names."""
        return [
            child
            for name, child in self.module.named_children()
            if (name in _ROUTERS or hasattr(child, "top_k")) and child is not self.experts
        ]

    @property
    def count(self) -> int:
        """Number of experts."""
        return self.bank.count if self.bank else len(list(self.experts.children()))


def find_mixtures(module: nn.Module) -> Iterator[ExpertMixture]:
    """Yield the mixtures of experts within ``module``, in forward order."""
    for name, parent in module.named_modules():
        for child_name, child in parent.named_children():
            bank = find_bank(child)
            if bank or (_EXPERTS.search(child_name) and _is_expert_list(child)):
                yield ExpertMixture(name, parent, child, bank)


def find_unknown_experts(
    module: nn.Module, found: Sequence[ExpertMixture]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the 3-D parameters that look like experts but belong to no mixture in ``found``."""
    recognised = {id(p) for mixture in found if mixture.bank for p in mixture.bank.parameters()}
    for name, part in module.named_modules():
        for last, parameter in part.named_parameters(name, recurse=False):
            stacked = parameter.ndim == 3 and not isinstance(part, nn.modules.conv._ConvNd)
            looks = _EXPERTS.search(last) or _EXPERTS.search(type(part).__name__)
            if stacked and looks and id(parameter) not in recognised:
                yield last, parameter


class UnknownView(WeightView):
    """Weights of experts in an unknown storage.

    Such a unit can only be excluded; reading or writing it raises ModelError.

    Args:
        name: Full name of the parameter.
        parameter: The parameter.
    """

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        shape = " x ".join(map(str, parameter.shape))
        stem = name.rpartition(".")[0].rpartition(".")[2]
        self._message = (
            f"{name} ({shape}) looks like experts in an unknown storage: "
            f"leave them dense with --exclude {stem!r}"
        )

    @property
    def module(self) -> nn.Module:
        """Not known."""
        return self._fail()

    def read(self) -> Tensor:
        """Not known."""
        return self._fail()

    def read_gradient(self) -> Tensor:
        """Not known."""
        return self._fail()

    def parameters(self) -> list[Tensor]:
        """Return the parameter."""
        return [self._parameter]

    def write(self, weight: Tensor) -> None:
        """Not known."""
        del weight
        self._fail()

    def _fail(self) -> NoReturn:
        raise ModelError(self._message)


class ExpertMatrix(WeightView):
    """One matrix of one expert, a part of a bank's parameter.

    Args:
        bank: The bank.
        index: Index of the expert.
        name: Name of the parameter.
    """

    def __init__(self, bank: Bank, index: int, name: str) -> None:
        self.bank = bank
        self.name = name
        self.index = index

    @property
    def module(self) -> nn.Module:
        """The module of all experts; it receives all tokens, not only those of this expert."""
        return self.bank.module

    def inputs(self, tensor: Tensor) -> Tensor:
        """Return the inputs of the matrix when its expert gets the tokens ``(n, hidden)``."""
        return self.bank.inputs(self.name, self.index, tensor)

    def read(self) -> Tensor:
        """Return the matrix, ``(outputs, inputs)``, contiguous; it may share memory."""
        return self._stored().contiguous()

    def read_gradient(self) -> Tensor:
        """Return the matrix's gradient."""
        return self.bank.matrix(
            get_gradient(self.bank.parameter(self.name)), self.name, self.index
        )

    def parameters(self) -> list[Tensor]:
        """Return the parameter, which holds the matrices of all experts."""
        return [self.bank.parameter(self.name)]

    def write(self, weight: Tensor) -> None:
        """Copy ``weight`` into the parameter."""
        self._stored().copy_(weight)

    def assembled(self, matrices: Mapping[int, Tensor]) -> Tensor:
        """Return the parameter with some experts' matrices replaced; gradients flow to these."""
        return self.bank.assembled(self.name, matrices)

    def _stored(self) -> Tensor:
        return self.bank.matrix(self.bank.parameter(self.name).detach(), self.name, self.index)


class ExpertLinear(LinearView):
    """A linear layer of one expert, in a mixture whose experts are separate modules.

    Args:
        linear: The layer.
        mixture: The mixture.
        index: Index of the expert.
    """

    def __init__(self, linear: nn.Linear, mixture: ExpertMixture, index: int) -> None:
        super().__init__(linear)
        self.mixture = mixture
        self.index = index

    def effects(self, change: Tensor) -> list[LinearEffect]:
        """Refuse, as for all experts: the layer does not read every token.

        Raises:
            ConfigError: Always.
        """
        return WeightView.effects(self, change)


def _is_expert_list(module: nn.Module) -> bool:
    """Return whether a module is a list of modules of one class that hold linear layers."""
    children = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.ModuleDict))
        and len(children) > 1
        and len({type(child) for child in children}) == 1
        and any(isinstance(part, nn.Linear) for part in children[0].modules())
    )


def get_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient of a tensor, zeros for none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
