"""Mixtures of experts: their place in a block, and views of their weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.banks import DOWN, GATE_UP, Bank, FusedBank, find_bank
from sparsity_search.models.anatomy.views import LinearEffect, LinearView, WeightView
from sparsity_search.models.surgery.rebuild import rebuild

#: Names of the number of experts in configurations.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
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
        gates: set[nn.Module] = set()
        for name, child in self.module.named_children():
            small = isinstance(child, nn.Linear) and child.out_features in (1, self.count)
            if small or name in _ROUTERS or hasattr(child, "top_k"):
                gates.update(child.modules())
        return gates - set(self.experts.modules())

    @property
    def count(self) -> int:
        """Number of experts."""
        return self.bank.count if self.bank else len(list(self.experts.children()))

    @property
    def plain(self) -> FusedBank:
        """The bank, if whole experts can be removed from it.

        Raises:
            ModelError: They cannot, because the experts are stored in another way.
        """
        if isinstance(self.bank, FusedBank) and self.bank.plain:
            return self.bank
        raise ModelError(
            f"the experts of {self.name or 'a block'} are not two untransposed parameters "
            f"{GATE_UP} and {DOWN} without biases, so whole experts cannot be removed: choose "
            "--units weights"
        )

    def router(self) -> nn.Module:
        """Return the router, whose only tensor must be a weight ``(experts, hidden)``.

        Raises:
            ModelError: It has more, e.g. a bias per expert or groups of experts.
        """
        shape = self.plain.parameter(DOWN).shape[:2]
        for child in self.module.children():
            tensors = {**dict(child.named_parameters()), **dict(child.named_buffers())}
            sizes = {name: tensor.shape for name, tensor in tensors.items()}
            one_group = getattr(child, "n_group", 1) in (None, 1)
            if sizes == {"weight": shape} and hasattr(child, "top_k") and one_group:
                return child
        raise ModelError(f"the router of {self.name} is not supported: choose --units weights")


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

    Such a unit can only be excluded; any other use raises ModelError.

    Args:
        name: Full name of the parameter.
        parameter: The parameter.
    """

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
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
        """Not known."""
        return self._fail()

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
            _get_gradient(self.bank.parameter(self.name)), self.name, self.index
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


class ExpertsView(WeightView):
    """The experts of one mixture, as structures of one matrix.

    An expert has ``3 · inner + 1`` columns: its ``down_proj``, its ``gate_up_proj`` transposed,
    and its row of the router. There are no biases. Writing physically removes empty experts: the
    parameters and the router lose their rows, so that the router chooses among the others.
    Reading returns zeros for removed experts. (Experts that are empty in the dense model stay
    until others are removed too.)

    Args:
        mixture: The mixture.

    Raises:
        ModelError: The experts are stored in another way, or the router is not supported.
    """

    def __init__(self, mixture: ExpertMixture) -> None:
        self.bank = mixture.plain
        self._experts = mixture.experts
        self._router = mixture.router()
        self._modules = (mixture.module, mixture.experts, self._router)
        count, _, inner = _get_parameter(mixture.experts, DOWN).shape
        self._structures = StructureLayout(count, inner, 3 * inner + 1, biases=0)
        self._kept = torch.arange(count)
        self._dense_empty = self._structures.empty(self.read()).cpu()

    @property
    def module(self) -> nn.Module:
        """The module of all experts."""
        return self._experts

    @property
    def kept(self) -> Tensor:
        """Indices in the dense model of the experts that remain, ``(n,)`` int64."""
        return self._kept

    @property
    def structures(self) -> StructureLayout:
        """Layout of the matrix."""
        return self._structures

    @property
    def size(self) -> tuple[int, int]:
        """Number of experts, and weights per expert."""
        hidden = _get_parameter(self._experts, DOWN).shape[1]
        return self._structures.count, hidden * self._structures.width

    def parameters(self) -> list[nn.Parameter]:  # type: ignore[override]
        """Return the experts' two parameters and the router's weight."""
        return [
            _get_parameter(self._experts, DOWN),
            _get_parameter(self._experts, GATE_UP),
            _get_parameter(self._router, "weight"),
        ]

    def read(self) -> Tensor:
        """Return a new tensor, ``(hidden, count · width)``, in the widest dtype of its parts."""
        return self._matrix([parameter.detach() for parameter in self.parameters()])

    def read_gradient(self) -> Tensor:
        """Return the gradient in the shape of `read`; zero for removed experts."""
        return self._matrix([_get_gradient(parameter) for parameter in self.parameters()])

    def write(self, weight: Tensor) -> None:
        """Write the experts that are not empty, and remove the others.

        Raises:
            ModelError: Fewer experts would remain than each token is routed to. Nothing is
                written.
        """
        shape = self._structures
        empty = shape.empty(weight).cpu()
        as_dense = torch.equal(empty, self._dense_empty)
        kept = torch.arange(shape.count) if as_dense else (~empty).nonzero().flatten()
        router: Any = self._router
        if len(kept) < router.top_k:
            raise ModelError(
                f"{len(kept)} of {shape.count} experts would remain, but each token is routed to "
                f"{router.top_k}: remove fewer, with --bounds "
                f"experts=0:{1 - router.top_k / shape.count:g}"
            )
        bodies = shape.bodies(weight)[:, kept.to(weight.device)].transpose(0, 1)
        down, gate_up, rows = torch.split(bodies, [shape.inner, 2 * shape.inner, 1], dim=2)
        values = (down, gate_up.mT, rows[:, :, 0])
        for parameter, value in zip(self.parameters(), values, strict=True):
            _assign(parameter, value)
        self._kept = kept
        for module in self._modules:
            if hasattr(module, "num_experts"):
                module.num_experts = len(kept)  # type: ignore[assignment]

    def _matrix(self, parts: Sequence[Tensor]) -> Tensor:
        down, gate_up, rows = parts
        bodies = torch.cat([down, gate_up.mT, rows[:, :, None]], dim=2)
        full = bodies.new_zeros(bodies.shape[1], self._structures.count, bodies.shape[2])
        full[:, self._kept.to(full.device)] = bodies.transpose(0, 1)
        return full.flatten(1)


def resize_experts(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model; if experts were removed, a new one with their number in its configuration.

    Raises:
        ModelError: The mixtures keep different numbers of experts, or the architecture does not
            support this number.
    """
    banks = [mixture.bank for mixture in find_mixtures(model)]
    counts = sorted({b.count for b in banks if isinstance(b, FusedBank) and b.plain})
    text = model.config.get_text_config()
    names = [name for name in _COUNTS if hasattr(text, name)]
    if not counts or not names or counts == [getattr(text, names[0])]:
        return model
    if len(counts) > 1:
        raise ModelError(
            f"blocks keep between {counts[0]} and {counts[-1]} experts, but the configuration of "
            f"{type(model).__name__} has one number for all: remove equally many of each"
        )
    config = copy.deepcopy(model.config)
    setattr(config.get_text_config(), names[0], counts[0])
    return rebuild(model, config, model.state_dict())


def _is_expert_list(module: nn.Module) -> bool:
    """Return whether a module is a list of modules of one class that hold linear layers."""
    children = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.ModuleDict))
        and len(children) > 1
        and len({type(child) for child in children}) == 1
        and any(isinstance(part, nn.Linear) for part in children[0].modules())
    )


def _get_parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _get_gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _assign(parameter: nn.Parameter, values: Tensor) -> None:
    """Set the values and the number of rows of a parameter, which stays the same object."""
    if parameter.shape == values.shape:
        parameter.detach().copy_(values)
        return
    with torch.inference_mode(False):  # tensors made in inference mode cannot be written later
        fresh = torch.empty(values.shape, dtype=parameter.dtype, device=parameter.device)
        parameter.data = fresh.copy_(values)
