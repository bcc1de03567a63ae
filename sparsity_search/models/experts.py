"""Mixtures of experts: where they are in a block, and views of their weights.

transformers keeps the experts of a block in two 3-D parameters, ``gate_up_proj`` of shape
``(experts, 2 · inner, hidden)`` and ``down_proj`` of shape ``(experts, hidden, inner)``. Experts
stored in another way (transposed, with biases, without a gate) are not seen here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.models.views import View
from sparsity_search.structures import Structures

#: Names of the experts' parameters.
GATE_UP, DOWN = "gate_up_proj", "down_proj"
#: Names that configurations have for the number of experts.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
#: Names that modules have for their router.
_ROUTERS = ("gate", "router")


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of experts.

    Attributes:
        name: Name of its module, relative to the module that was searched.
        module: The module that holds experts and router.
        experts: The module that holds the experts' parameters.
    """

    name: str
    module: nn.Module
    experts: nn.Module

    def gates(self) -> set[nn.Module]:
        """Return the modules that decide how much each expert matters: they are not pruned."""
        found: set[nn.Module] = set()
        for name, child in self.module.named_children():
            small = isinstance(child, nn.Linear) and child.out_features in (1, self.count)
            if small or name in _ROUTERS or hasattr(child, "top_k"):
                found.update(child.modules())
        return found - {self.experts}

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(_parameter(self.experts, DOWN))

    def router(self) -> nn.Module:
        """Return the router, if its weight ``(experts, hidden)`` is all that it has.

        Raises:
            ModelError: It has more, e.g. a bias for each expert or groups of experts.
        """
        shape = _parameter(self.experts, DOWN).shape[:2]
        for child in self.module.children():
            tensors = {**dict(child.named_parameters()), **dict(child.named_buffers())}
            sizes = {name: tensor.shape for name, tensor in tensors.items()}
            one_group = getattr(child, "n_group", 1) in (None, 1)
            if sizes == {"weight": shape} and hasattr(child, "top_k") and one_group:
                return child
        raise ModelError(f"the router of {self.name} is not understood: cannot remove experts")


def mixtures(module: nn.Module) -> Iterator[Mixture]:
    """Yield the mixtures of experts within ``module``, in forward order."""
    for name, parent in module.named_modules():
        for child in parent.children():
            if is_experts(child):
                yield Mixture(name, parent, child)


def is_experts(module: nn.Module) -> bool:
    """Return whether a module holds gated experts in the layout that is known here."""
    gate_up, down = getattr(module, GATE_UP, None), getattr(module, DOWN, None)
    if not (isinstance(gate_up, nn.Parameter) and isinstance(down, nn.Parameter)):
        return False
    switches = ("is_transposed", "has_bias", "has_post_expert_norm")
    if down.ndim != 3 or any(getattr(module, name, False) for name in switches):
        return False
    count, hidden, inner = down.shape
    return gate_up.shape == (count, 2 * inner, hidden)


def activations(experts: nn.Module, index: int, tokens: Tensor) -> Tensor:
    """Return what an expert's ``down_proj`` reads, ``(n_tokens, inner)``.

    Args:
        experts: The module of all experts.
        index: Which expert.
        tokens: ``(n_tokens, hidden)``.
    """
    made = nn.functional.linear(tokens, _parameter(experts, GATE_UP).detach()[index])
    module: Any = experts
    if hasattr(module, "_apply_gate"):  # the family's own way, e.g. with a limit
        gated: Tensor = module._apply_gate(made)
        return gated
    gate, up = made.chunk(2, dim=-1)
    result: Tensor = module.act_fn(gate) * up
    return result


def outputs(experts: nn.Module, index: int, tokens: Tensor) -> Tensor:
    """Return an expert's output, without its gate weight, from the module's own forward.

    Args:
        experts: The module of all experts.
        index: Which expert.
        tokens: ``(n_tokens, hidden)``.
    """
    chosen = torch.full((len(tokens), 1), index, device=tokens.device)
    result: Tensor = experts.forward(tokens, chosen, torch.ones_like(chosen, dtype=tokens.dtype))
    return result


class ExpertMatrix(View):
    """One matrix of one expert, a slice of a 3-D parameter.

    Args:
        experts: The module of all experts.
        index: Which expert.
        name: Of the parameter, `GATE_UP` or `DOWN`.
    """

    def __init__(self, experts: nn.Module, index: int, name: str) -> None:
        self._experts = experts
        self._name = name
        self.index = index

    @property
    def module(self) -> nn.Module:
        """The module of all experts; its tokens are all, not only the routed ones."""
        return self._experts

    def inputs(self, tensor: Tensor) -> Tensor:
        """Return what the matrix reads when the expert gets the tokens ``(n, hidden)``."""
        if self._name == GATE_UP:
            return tensor
        return activations(self._experts, self.index, tensor)

    def read(self) -> Tensor:
        """Return the matrix, ``(outputs, inputs)``; shares memory."""
        return _parameter(self._experts, self._name).detach()[self.index]

    def read_gradient(self) -> Tensor:
        """Return the matrix's gradient."""
        return _gradient(_parameter(self._experts, self._name))[self.index]

    def parameters(self) -> list[Tensor]:
        """Return the parameter, which holds the matrices of all experts."""
        return [_parameter(self._experts, self._name)]

    def write(self, weight: Tensor) -> None:
        """Copy ``weight`` into the parameter."""
        self.read().copy_(weight)


class ExpertsView(View):
    """The experts of one mixture, structures of one matrix.

    An expert has ``3 · inner + 1`` columns: its ``down_proj``, its ``gate_up_proj`` transposed,
    and its row of the router. There are no biases. Writing really removes the experts that are
    empty: parameters and router lose their rows, so that the router chooses among the others.
    Reading gives zeros for them. (Experts that are empty in the dense model stay until others
    are removed too.)

    Args:
        mixture: The mixture.

    Raises:
        ModelError: Its router is not understood.
    """

    def __init__(self, mixture: Mixture) -> None:
        self._experts = mixture.experts
        self._router = mixture.router()
        self._modules = (mixture.module, mixture.experts, self._router)
        count, _, inner = _parameter(mixture.experts, DOWN).shape
        self._structures = Structures(count, inner, 3 * inner + 1, biases=0)
        self._kept = torch.arange(count)
        self._dense_empty = self._structures.empty(self.read()).cpu()

    @property
    def module(self) -> nn.Module:
        """The module of all experts."""
        return self._experts

    @property
    def kept(self) -> Tensor:
        """The experts that are there, by their number in the dense model, ``(n,)`` int64."""
        return self._kept

    @property
    def structures(self) -> Structures:
        """Shape of the matrix."""
        return self._structures

    @property
    def size(self) -> tuple[int, int]:
        """Number of experts, and weights of one."""
        hidden = _parameter(self._experts, DOWN).shape[1]
        return self._structures.count, hidden * self._structures.width

    def parameters(self) -> list[nn.Parameter]:  # type: ignore[override]
        """Return the experts' two parameters and the router's weight."""
        return [
            _parameter(self._experts, DOWN),
            _parameter(self._experts, GATE_UP),
            _parameter(self._router, "weight"),
        ]

    def read(self) -> Tensor:
        """Return a new tensor, ``(hidden, count · width)``, in the widest type of its parts."""
        return self._matrix([parameter.detach() for parameter in self.parameters()])

    def read_gradient(self) -> Tensor:
        """Return the gradient in the shape of `read`; zero for removed experts."""
        return self._matrix([_gradient(parameter) for parameter in self.parameters()])

    def write(self, weight: Tensor) -> None:
        """Keep the experts that are not empty, with the weights given.

        Raises:
            ModelError: Fewer would stay than each token is routed to; nothing is written.
        """
        shape = self._structures
        empty = shape.empty(weight).cpu()
        as_dense = torch.equal(empty, self._dense_empty)
        kept = torch.arange(shape.count) if as_dense else (~empty).nonzero().flatten()
        router: Any = self._router
        if len(kept) < router.top_k:
            raise ModelError(
                f"{len(kept)} of {shape.count} experts would stay, but each token is routed to "
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


def resized(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, or if experts were removed a new one whose configuration says so.

    Raises:
        ModelError: Its mixtures keep different numbers of experts, or the architecture cannot
            have this number.
    """
    counts = sorted({mixture.count for mixture in mixtures(model)})
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
    with torch.random.fork_rng(devices=[]):
        made = type(model)(config)
    made.to(device=model.device, dtype=model.dtype)
    made.load_state_dict(model.state_dict())
    made.generation_config = copy.deepcopy(model.generation_config)
    result: PreTrainedModel = made.eval().requires_grad_(False)
    return result


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    found = getattr(module, name)
    assert isinstance(found, nn.Parameter)
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _assign(parameter: nn.Parameter, values: Tensor) -> None:
    """Set a parameter's values, and its number of rows; it stays the same object."""
    if parameter.shape == values.shape:
        parameter.detach().copy_(values)
        return
    with torch.inference_mode(False):  # tensors made in inference mode cannot be written later
        fresh = torch.empty(values.shape, dtype=parameter.dtype, device=parameter.device)
        parameter.data = fresh.copy_(values)
