"""One decoder block as a function of masks over its weights, for training on its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.experts import ExpertMatrix
from sparsity_search.models.anatomy.linears import as_matrix, read_matrix
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import RowsView, WeightView
from sparsity_search.models.running.routing import RoutedGatherer
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream

#: Least energy of an output channel, as a fraction of the mean.
_QUIET = 1e-6


@dataclass(frozen=True, eq=False)
class MaskedBlock:
    """A decoder block that can run with masked weights; its own are never replaced.

    Attributes:
        index: Its number.
        module: The block.
        views: Of its units, by name.
        statistics: Of its units' inputs, by name.
    """

    index: int
    module: nn.Module
    views: Mapping[str, WeightView]
    statistics: Mapping[str, InputStatistics]

    def __call__(self, stream: Stream, masks: Mapping[str, Tensor]) -> Stream:
        """Return what flows out of the block.

        Args:
            stream: What flows in; autograd may save copies of its tensors.
            masks: Factors of each unit's weights, of its shape, by name; gradients flow to them.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, dict(self._parameters(masks)), args, kwargs)

        return stream.call(self.index, forward, Tensor.clone)

    def _parameters(self, masks: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the block's masked parameters by their names in it."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        experts: dict[str, tuple[ExpertMatrix, dict[int, Tensor]]] = {}
        fused: dict[str, tuple[RowsView, Tensor]] = {}
        for unit, mask in masks.items():
            view = self.views[unit]
            (parameter,) = view.parameters()
            weight, name = view.read(), names[id(parameter)]
            masked = weight * mask.to(weight.dtype)
            if isinstance(view, ExpertMatrix):
                experts.setdefault(name, (view, {}))[1][view.index] = masked
            elif isinstance(view, RowsView):
                whole = fused.get(name, (view, read_matrix(view.linear)))[1]
                fused[name] = (view, view.within(whole, masked))
            else:
                yield name, as_matrix(view.module, masked)
        for name, (rows, whole) in fused.items():
            yield name, as_matrix(rows.module, whole)
        for name, (view, matrices) in experts.items():
            yield name, view.assembled(matrices)


def observe(
    subject: PrunableModel, runner: BlockRunner, block: int, streams: Sequence[Stream]
) -> tuple[MaskedBlock, list[Stream]]:
    """Run a dense block; return it as a function of masks, and what flows out of it.

    Args:
        subject: The model.
        runner: Of the model.
        block: Index of the block.
        streams: What flows into it.
    """
    views = {unit.name: subject.views[unit.name] for unit in subject.units_of(block)}
    with _gather_statistics(views, runner, block, streams) as statistics:
        outputs = runner.run(block, streams)
    return MaskedBlock(block, subject.blocks[block], views, statistics), outputs


@contextmanager
def _gather_statistics(
    views: Mapping[str, WeightView], runner: BlockRunner, block: int, streams: Sequence[Stream]
) -> Iterator[dict[str, InputStatistics]]:
    """Within, gather the statistics of the units' inputs."""
    experts = RoutedGatherer(views, Statistic.NORM)
    found = dict(experts.statistics)
    handles = []
    try:
        for name in views.keys() - found.keys():
            view = views[name]
            weight = view.read()
            found[name] = InputStatistics(weight.shape[1], Statistic.NORM, weight.device)

            def add(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                found[name].add(args[0])

            handles.append(view.module.register_forward_pre_hook(add))
        with experts:
            yield found
    finally:
        for handle in handles:
            handle.remove()
    if experts.unrouted:
        with experts.all_tokens():
            runner.run(block, streams)


def compute_relative_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over channels of the squared error relative to the wanted channel's size.

    ``1/H · Σ_c ‖y_c - ŷ_c‖² / ‖y_c‖²``, norms over all tokens, in float32. Channels that are
    almost silent count as if they had a millionth of the mean energy.
    """
    wanted = wanted.float().flatten(0, -2)
    energy = wanted.square().sum(dim=0)
    floor = (_QUIET * energy.mean()).clamp_min(torch.finfo(energy.dtype).tiny)
    error = (output.float().flatten(0, -2) - wanted).square().sum(dim=0)
    return (error / energy.maximum(floor)).mean()
