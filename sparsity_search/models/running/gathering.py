"""Statistics of the inputs of layers, gathered while a block runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream

#: Inputs of layers in the order of the calls, by unit name.
Inputs = Mapping[str, Sequence[Tensor]]


def record_inputs(
    subject: PrunableModel,
    names: Sequence[str],
    runner: BlockRunner,
    block: int,
    hidden: Sequence[Stream],
) -> tuple[Inputs, list[Stream]]:
    """Return all inputs of units' layers in a run of a block, and the block's output.

    Layers that read one tensor share it.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Any:
        return lambda _, args: found[name].append(args[0])

    handles = [subject.views[name].module.register_forward_pre_hook(hook(name)) for name in names]
    try:
        return found, runner.run(block, hidden)
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):
    """All inputs that are needed of a run of a block are known."""


class Gatherer:
    """Accumulator of statistics while a block runs, once for each distinct input tensor.

    The first batch shows which units share an input, by the identity of the tensor.

    Args:
        subject: The model.
        names: The units.
        statistic: Kind of statistic to gather.
        n_calls: Calls of the units' layers in a batch, after which `run` ends it; 0 for never.
        dense: Inputs of units' layers in the dense model, for `InputStatistics.cross`.

    Attributes:
        statistics: What is gathered, by unit name, in the order of the first calls.
        n_calls: Calls of each unit's layer so far.
    """

    def __init__(
        self,
        subject: PrunableModel,
        names: Sequence[str],
        statistic: Statistic,
        n_calls: int = 0,
        dense: Inputs | None = None,
    ) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self.n_calls: Counter[str] = Counter()
        self._enough = n_calls
        self._dense = {name: iter((dense or {}).get(name, ())) for name in names}
        self._subject = subject
        self._names = names
        self._statistic = statistic
        self._leaders: set[str] = set()
        self._current: list[tuple[Tensor, str]] = []

    def __enter__(self) -> None:
        self._handles = [
            self._subject.views[name].module.register_forward_pre_hook(self._hook(name))
            for name in self._names
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._current.clear()

    def run(self, runner: BlockRunner, block: int, hidden: Sequence[Stream]) -> list[Stream]:
        """Run a block; return its output, without batches that ended early."""
        outputs: list[Stream] = []
        for stream in hidden:
            self.n_calls.clear()
            with suppress(_Enough):
                outputs += runner.run(block, [stream])
        return outputs

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            self.n_calls[name] += 1
            if name not in self.statistics:
                self._join(name, inputs)
            if name in self._leaders:
                read = self._subject.views[name].inputs
                dense = next(self._dense[name], None)
                wanted = None if dense is None else read(dense)
                self.statistics[name].add(read(inputs), wanted)
            if self.n_calls.total() == self._enough:
                raise _Enough

        return hook

    def _join(self, name: str, inputs: Tensor) -> None:
        """Share the statistics of a unit that read this very tensor, or create new ones."""
        for seen, leader in self._current:
            if seen is inputs:
                self.statistics[name] = self.statistics[leader]
                return
        self._leaders.add(name)
        self._current.append((inputs, name))
        self.statistics[name] = InputStatistics(
            inputs.shape[-1], self._statistic, device=inputs.device
        )
