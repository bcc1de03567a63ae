"""Statistics of mixtures of experts: the tokens routed to each expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.evidence.evidence import Routing
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.experts import ExpertLinear, ExpertMatrix
from sparsity_search.models.anatomy.views import WeightView
from sparsity_search.models.anatomy.whole_experts import ExpertsView

#: Tokens whose inputs to all experts are in memory at once.
_CHUNK = 256


class RoutedGatherer:
    """Accumulator of statistics and routing of units in mixtures while a block runs.

    The matrices of a single expert read only the tokens that are routed to it. An expert without
    tokens can read the tokens of all others in a second run, see `all_tokens`.

    Args:
        views: The block's views by unit name; views outside of mixtures are ignored.
        statistic: Kind of statistic to gather of the inputs.
    """

    def __init__(self, views: Mapping[str, WeightView], statistic: Statistic) -> None:
        self._matrices = {n: v for n, v in views.items() if isinstance(v, ExpertMatrix)}
        self._linears = {n: v for n, v in views.items() if isinstance(v, ExpertLinear)}
        self._observers = {
            name: _Observer(view, statistic)
            for name, view in views.items()
            if isinstance(view, ExpertsView)
        }
        singles: dict[str, ExpertMatrix | ExpertLinear] = {**self._matrices, **self._linears}
        self._singles = singles
        shared: dict[Any, InputStatistics] = {}
        self.statistics: dict[str, InputStatistics] = {}
        self._leaders: list[str] = []  # one unit per input
        for name, view in singles.items():
            key = _get_input_key(view)
            if key not in shared:
                weight = view.read()
                shared[key] = InputStatistics(weight.shape[1], statistic, weight.device)
                self._leaders.append(name)
            self.statistics[name] = shared[key]
        self.statistics |= {name: o.statistics for name, o in self._observers.items()}
        self._first: dict[str, int] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        views: list[WeightView] = [*self._matrices.values()]
        views += [observer.view for observer in self._observers.values()]
        modules = dict.fromkeys(view.module for view in views)
        self._handles = [
            module.register_forward_pre_hook(self._hook, with_kwargs=True) for module in modules
        ]
        self._handles += [
            view.module.register_forward_pre_hook(self._linear_hook(name))
            for name, view in self._linears.items()
        ]
        self._handles += [
            expert.register_forward_pre_hook(self._show(others), with_kwargs=True)
            for expert, others in self._without_tokens().items()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def unrouted(self) -> list[str]:
        """Names of units of single experts that no token reached."""
        return [name for name in self._singles if not self.statistics[name].n_tokens]

    @contextmanager
    def all_tokens(self) -> Iterator[None]:
        """Gather all tokens inside for the units that no token reached."""
        self._first = {name: self.statistics[name].n_tokens for name in self._singles}
        with self:
            yield

    def routing(self) -> dict[str, Routing]:
        """Return the routing of whole mixtures, by unit name."""
        return {name: observer.routing() for name, observer in self._observers.items()}

    def notes(self) -> tuple[str, ...]:
        """Return warnings about experts that received few or no tokens, by module."""
        none: dict[str, set[int]] = {}
        few: dict[str, set[int]] = {}
        for name, view in self._singles.items():
            statistics = self.statistics[name]
            tokens = self._first.get(name, statistics.n_tokens)
            if tokens < statistics.n_inputs:
                (few if tokens else none).setdefault(_find_module_name(name, view), set()).add(
                    view.index
                )
        return (
            *_format_notes(none, "no token is routed to {}: calibrated with all tokens"),
            *_format_notes(few, "fewer tokens than inputs are routed to {}"),
        )

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = (*args, *kwargs.values())
        for name in self._leaders:
            view = self._matrices.get(name)
            if view is None or view.module is not module or self._first.get(name):
                continue
            tokens = view.bank.tokens(None if name in self._first else view.index, arguments)
            if len(tokens):
                self.statistics[name].add(view.inputs(tokens))
        for observer in self._observers.values():
            if observer.view.module is module:
                observer.add(arguments)

    def _linear_hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._first.get(name):
                self.statistics[name].add(args[0])

        return hook

    def _without_tokens(self) -> dict[nn.Module, list[nn.Module]]:
        """Return for each expert with tokens the experts without, for the second run."""
        none: dict[Any, set[int]] = {}
        for name, view in self._linears.items():
            if self._first.get(name) == 0:
                none.setdefault(view.mixture, set()).add(view.index)
        others = {}
        for mixture, indices in none.items():
            experts = list(mixture.experts.children())
            for index in set(range(len(experts))) - indices:
                others[experts[index]] = [experts[other] for other in sorted(indices)]
        return others

    def _show(self, others: list[nn.Module]) -> Any:
        """Return a hook that calls the experts without tokens on an expert's tokens."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for other in others:
                other(*args, **kwargs)

        return hook


class _Observer:
    """Accumulator of the routing of one mixture, and of the inputs of all its experts."""

    def __init__(self, view: ExpertsView, statistic: Statistic) -> None:
        shape = view.structures
        self.view = view
        self.statistics = InputStatistics(
            shape.count * shape.inner, statistic, view.parameters()[0].device
        )
        self._together = torch.zeros(shape.count, shape.count, dtype=torch.int64)
        self._saliency = torch.zeros(shape.count, dtype=torch.float64)

    def add(self, arguments: Sequence[Any]) -> None:
        """Add the tokens of one call of the experts, given its arguments."""
        bank = self.view.bank
        size = bank.count_tokens(arguments), len(self._together)
        chosen = torch.zeros(size, device=arguments[0].device)
        for tokens in bank.routed(arguments):
            number = int(self.view.kept[tokens.index])
            chosen[tokens.rows, number] = 1.0
            norms = bank.outputs(tokens.index, tokens.inputs).float().norm(dim=1)
            self._saliency[number] += float((tokens.gates.float() * norms).sum())
        self._together += (chosen.T @ chosen).long().cpu()  # exact below 2²⁴ tokens
        if self.statistics.statistic is not Statistic.NONE:
            for part in bank.parts(arguments, _CHUNK):
                self.statistics.add(self._side_by_side(part))

    def routing(self) -> Routing:
        """Return the routing of all tokens added so far."""
        tokens = self._together.diagonal()
        return Routing(
            tokens=tokens.clone(),
            saliency=(self._saliency / tokens.clamp_min(1)).float(),
            coactivation=self._together - tokens.diag(),
        )

    def _side_by_side(self, arguments: Sequence[Any]) -> Tensor:
        """Return the consumer's inputs: activations times gate weights, else zeros."""
        shape, bank = self.view.structures, self.view.bank
        hidden: Tensor = arguments[0]
        result = hidden.new_zeros(bank.count_tokens(arguments), shape.count, shape.inner)
        for tokens in bank.routed(arguments):
            inner = bank.activations(tokens.index, tokens.inputs) * tokens.gates[:, None]
            result[tokens.rows, int(self.view.kept[tokens.index])] = inner.to(result)
        return result.flatten(1)


def _get_input_key(view: ExpertMatrix | ExpertLinear) -> Any:
    """Return a key that is equal for matrices with the same input."""
    if isinstance(view, ExpertLinear):
        return view
    return view.module, view.index, view.bank.reads_tokens(view.name)


def _find_module_name(name: str, view: ExpertMatrix | ExpertLinear) -> str:
    """Return the full name of the module that holds the unit's expert."""
    if isinstance(view, ExpertMatrix):
        return name.rpartition(".")[0].rpartition(".")[0]
    own = next(n for n, m in view.mixture.experts.named_modules() if m is view.module)
    return name.removesuffix(f".{own}")


def _format_notes(experts: Mapping[str, Iterable[int]], line: str) -> Iterator[str]:
    for module, indices in experts.items():
        names = ", ".join(map(str, sorted(indices)))
        yield f"{module}: " + line.format(f"expert {names}")
