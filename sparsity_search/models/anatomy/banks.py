"""Banks: modules that hold the matrices of every expert of a mixture.

Nearly all mixtures of transformers 5 keep their experts in two 3-D parameters: ``gate_up_proj``,
``(experts, 2 · inner, hidden)``, or ``up_proj`` where there is no gate, and ``down_proj``,
``(experts, hidden, inner)``. Both may be transposed, gate and up may alternate, and there may be
biases (`transformers.integrations.moe.use_experts_implementation`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

#: Names of the experts' parameters in most families.
GATE_UP, UP, DOWN = "gate_up_proj", "up_proj", "down_proj"
_GATED = {GATE_UP: "expert_gate_up", DOWN: "expert_down"}
_UNGATED = {UP: "expert_up", DOWN: "expert_down"}


@dataclass(frozen=True, eq=False)
class RoutedTokens:
    """The tokens that one expert gets.

    Attributes:
        index: Index of the expert.
        rows: Positions of the tokens among all, ``(n,)`` int64, ascending.
        inputs: What the expert reads of them, ``(n, hidden)``.
        gates: Factors of its outputs, ``(n,)``.
    """

    index: int
    rows: Tensor
    inputs: Tensor
    gates: Tensor


class Bank(ABC):
    """The matrices of all experts in the parameters of one module.

    Args:
        module: The module that is called with the tokens.
        roles: Role of the matrices in each parameter, in forward order. The last of several
            parameters reads the activations computed from the others.
        count: Number of experts.
        transposed: Parameters whose matrices are stored as ``(inputs, outputs)``.
        owner: The module that holds the parameters; None for ``module``.
    """

    def __init__(
        self,
        module: nn.Module,
        roles: Mapping[str, str],
        count: int,
        transposed: Sequence[str] = (),
        owner: nn.Module | None = None,
    ) -> None:
        self.module = module
        self.roles = roles
        self.transposed = frozenset(transposed)
        self._count = count
        self._owner = owner or module

    @property
    def count(self) -> int:
        """Number of experts."""
        return self._count

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter that holds the matrices of all experts."""
        parameter = getattr(self._owner, name)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters that hold matrices."""
        return [self.parameter(name) for name in self.roles]

    def matrices(self, tensor: Tensor, name: str) -> Tensor:
        """Return all experts' matrices, ``(experts, outputs, inputs)``, sharing memory.

        Args:
            tensor: Values or gradient of the parameter, in its shape.
            name: Name of the parameter.
        """
        return self._oriented(self._split(tensor), name)

    def matrix(self, tensor: Tensor, name: str, index: int) -> Tensor:
        """Return an expert's matrix, ``(outputs, inputs)``, sharing memory.

        Args:
            tensor: Values or gradient of the parameter, in its shape.
            name: Name of the parameter.
            index: Index of the expert.
        """
        return self.matrices(tensor, name)[index]

    def assembled(self, name: str, matrices: Mapping[int, Tensor]) -> Tensor:
        """Return a parameter with some experts' matrices replaced; gradients flow to these."""
        parameter = self.parameter(name).detach()
        parts = list(self._split(parameter))
        for index, matrix in matrices.items():
            parts[index] = self._oriented(matrix, name)
        return torch.stack(parts).view(parameter.shape)

    def reads_tokens(self, name: str) -> bool:
        """Return whether a parameter's matrices read the tokens themselves."""
        return len(self.roles) == 1 or name != list(self.roles)[-1]

    def inputs(self, name: str, index: int, tokens: Tensor) -> Tensor:
        """Return the inputs of a matrix when its expert gets the tokens ``(n, hidden)``."""
        return tokens if self.reads_tokens(name) else self.activations(index, tokens)

    @abstractmethod
    def activations(self, index: int, tokens: Tensor) -> Tensor:
        """Return the inputs of an expert's last matrix, ``(n_tokens, inner)``."""

    def outputs(self, index: int, tokens: Tensor) -> Tensor:
        """Return an expert's output, ``(n_tokens, hidden)``, without its gate weight."""
        result = self._linear(list(self.roles)[-1], index, self.activations(index, tokens))
        if getattr(self.module, "has_post_expert_norm", False):
            module: Any = self.module
            normed: Tensor = module.post_expert_norm(result)
            return normed
        return result

    def tokens(self, index: int | None, arguments: Sequence[Any]) -> Tensor:
        """Return the tokens that are routed to an expert, ``(n, hidden)``, or all for None.

        Args:
            index: Index of the expert; None for all.
            arguments: Arguments of the module's forward: tokens, their experts
                ``(n_tokens, top_k)``, and the gate weights. An expert with gate weight 0 does not
                get the token.
        """
        hidden: Tensor = arguments[0].flatten(0, -2)
        experts, gates = arguments[1:3]
        if index is None:
            return hidden
        return hidden[((experts == index) & (gates != 0)).any(dim=1)]

    def _linear(self, name: str, index: int, inputs: Tensor) -> Tensor:
        weight = self.matrix(self.parameter(name).detach(), name, index)
        bias = getattr(self._owner, f"{name}_bias", None)
        return nn.functional.linear(inputs, weight, None if bias is None else bias[index])

    def _split(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 3:
            return tensor
        return tensor.view(self.count, -1, tensor.shape[-1])

    def _oriented(self, matrix: Tensor, name: str) -> Tensor:
        return matrix.mT if name in self.transposed else matrix


class FusedBank(Bank):
    """Bank with gate and up in one parameter, or up alone, and the module's own gate."""

    @property
    def count(self) -> int:
        """Number of experts; some may have been removed."""
        return len(self.parameter(DOWN))

    @property
    def divisible(self) -> bool:
        """Whether an expert is two linear layers and what is between them, and nothing else."""
        same = len(self.parameter(DOWN)) == len(next(iter(self.parameters())))
        return same and not getattr(self.module, "has_post_expert_norm", False)

    def activations(self, index: int, tokens: Tensor) -> Tensor:
        """Return the inputs of an expert's ``down_proj``, ``(n_tokens, inner)``."""
        module: Any = self.module
        outputs = self._linear(next(iter(self.roles)), index, tokens)
        result: Tensor
        if GATE_UP not in self.roles:
            result = module.act_fn(outputs)
        elif hasattr(module, "_apply_gate"):  # the family's own gate, e.g. with a limit
            result = module._apply_gate(outputs)
        else:
            gate, up = outputs.chunk(2, dim=-1)
            result = module.act_fn(gate) * up
        return result

    def tokens(self, index: int | None, arguments: Sequence[Any]) -> Tensor:
        """Return the tokens that are routed to an expert, ``(n, hidden)``, or all for None.

        Llama 4 gives each expert all tokens times their gate weights, one expert after the other.
        Tokens that are not routed to the expert are zeros.
        """
        if len(arguments) > 1:
            return super().tokens(index, arguments)
        grouped = self._grouped(arguments)
        tokens = grouped.flatten(0, 1) if index is None else grouped[index]
        return tokens[(tokens != 0).any(dim=1)]

    def parts(self, arguments: Sequence[Any], size: int) -> Iterator[list[Tensor]]:
        """Yield the arguments of the module's forward for at most ``size`` tokens each."""
        if len(arguments) > 1:
            tensors = [torch.split(tensor.flatten(0, -2), size) for tensor in arguments[:3]]
            yield from map(list, zip(*tensors, strict=True))
        else:
            for part in torch.split(self._grouped(arguments), size, dim=1):
                yield [part.flatten(0, 1)]

    def count_tokens(self, arguments: Sequence[Any]) -> int:
        """Return the number of tokens, whether they are routed or not."""
        tokens: Tensor = arguments[0].flatten(0, -2)
        return len(tokens) if len(arguments) > 1 else len(tokens) // self.count

    def routed(self, arguments: Sequence[Any]) -> Iterator[RoutedTokens]:
        """Yield the tokens of each expert that gets any.

        Where the tokens come times their gate weights (Llama 4), the gates are ones.

        Args:
            arguments: Arguments of the module's forward, see `tokens`.
        """
        for index in range(self.count):
            if len(arguments) > 1:
                hidden, experts, gates = (each.flatten(0, -2) for each in arguments[:3])
                rows, slots = ((experts == index) & (gates != 0)).nonzero(as_tuple=True)
                inputs, factors = hidden[rows], gates[rows, slots]
            else:
                own = self._grouped(arguments)[index]
                rows = (own != 0).any(dim=1).nonzero().flatten()
                inputs, factors = own[rows], own.new_ones(len(rows))
            if len(rows):
                yield RoutedTokens(index, rows, inputs, factors)

    def _grouped(self, arguments: Sequence[Any]) -> Tensor:
        """Return Llama 4's only argument, ``(experts, n_tokens, hidden)``."""
        hidden: Tensor = arguments[0]
        return hidden.view(self.count, -1, hidden.shape[-1])


class SplitBank(Bank):
    """Bank with gate, up and down in 2-D parameters, one expert below the other (DBRX)."""

    def activations(self, index: int, tokens: Tensor) -> Tensor:
        """Return the inputs of an expert's ``w2``, ``(n_tokens, inner)``."""
        owner: Any = self._owner
        gate, up = (self._linear(name, index, tokens) for name in ("w1", "v1"))
        result: Tensor = owner.activation_fn(gate) * up
        return result


class LinearBank(Bank):
    """Bank of one linear layer per expert, called with the tokens sorted by expert (JetMoE)."""

    def activations(self, index: int, tokens: Tensor) -> Tensor:
        """Return the tokens, which the only matrix reads."""
        del index
        return tokens

    def tokens(self, index: int | None, arguments: Sequence[Any]) -> Tensor:
        """Return the tokens that are routed to an expert, ``(n, hidden)``, or all for None.

        Args:
            index: Index of the expert; None for all.
            arguments: Arguments of the module's forward: tokens, and their number per expert.
        """
        tokens, sizes = arguments[:2]
        own: Tensor = tokens if index is None else tokens.split(sizes)[index]
        return own


def find_bank(module: nn.Module) -> Bank | None:
    """Return the bank of a module, or None if its storage is not recognised."""
    return _find_fused_bank(module) or _find_split_bank(module) or _find_linear_bank(module)


def _find_fused_bank(module: nn.Module) -> Bank | None:
    roles = _GATED if hasattr(module, GATE_UP) else _UNGATED
    gated = roles is _GATED
    parameters = [getattr(module, name, None) for name in roles]
    stacks = [p for p in parameters if _is_stacked(p)]
    if len(stacks) < len(roles) or not any(hasattr(module, n) for n in ("_apply_gate", "act_fn")):
        return None
    if not gated and getattr(module, "has_gate", True):  # a gate may be in a third parameter
        return None
    stored = getattr(module, "is_transposed", None)
    for transposed in (False, True) if stored is None else (stored,):
        into, out = (p.mT if transposed else p for p in stacks)
        count, hidden, inner = out.shape
        # zero-computation experts may have rows of the first parameter too (LongCat-Flash)
        if len(into) >= count and into.shape[1:] == ((2 if gated else 1) * inner, hidden):
            return FusedBank(module, roles, count, tuple(roles) if transposed else ())
    return None


def _find_split_bank(module: nn.Module) -> Bank | None:
    owner = getattr(module, "mlp", None)
    count = getattr(module, "num_experts", None)
    roles = {"w1": "expert_gate", "v1": "expert_up", "w2": "expert_down"}
    parameters = [getattr(owner, name, None) for name in roles]
    if not (count and hasattr(owner, "activation_fn")):
        return None
    if not all(isinstance(p, nn.Parameter) and p.ndim == 2 for p in parameters):
        return None
    return SplitBank(module, roles, count, ("w2",), owner)


def _find_linear_bank(module: nn.Module) -> Bank | None:
    weight = getattr(module, "weight", None)
    shape = [getattr(module, name, 0) for name in ("num_experts", "output_size", "input_size")]
    if not (_is_stacked(weight) and list(weight.shape) == shape):
        return None
    return LinearBank(module, {"weight": "expert_linear"}, shape[0])


def _is_stacked(value: Any) -> TypeGuard[nn.Parameter]:
    return isinstance(value, nn.Parameter) and value.ndim == 3
