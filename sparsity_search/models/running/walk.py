"""The walk over the blocks that every use of calibration text shares.

At each block, the walk gathers the statistics of its inputs, yields them to the caller, and
continues with the block's output. If the caller does not change the block's weights, the next
blocks get dense inputs; if the caller prunes them, they get the outputs of the pruned block
(sequential pruning). A walk by sublayers or layers visits each block several times, so that the
feed-forward gets the outputs of the pruned attention, or each layer those of all pruned before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.roles import FOLLOWED_BY
from sparsity_search.models.anatomy.whole_experts import ExpertsView
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.routing import RoutedGatherer
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.statistics_cache import GatheredBlock
from sparsity_search.models.running.stream import Stream
from sparsity_search.profiles.layout import Unit

#: Part of the model for which statistics are gathered at once; a ``"layer"`` stands for all that
#: read one tensor.
Refresh = Literal["block", "sublayer", "layer"]


@dataclass(frozen=True)
class Visit:
    """One block of a walk, or a part of it.

    Attributes:
        block: Index of the block.
        units: Its units, or those of the part, in forward order.
        statistics: Statistics of each unit's input, by unit name; units that read the same tensor
            share one object, and with it one factorisation.
        evidence: Calibration data of each unit, by name.
        notes: Warnings about the statistics, e.g. about experts without tokens.
        last: Whether this is the last visit to the block.
    """

    block: int
    units: list[Unit]
    statistics: dict[str, InputStatistics]
    evidence: dict[str, Evidence]
    notes: tuple[str, ...] = ()
    last: bool = True


def walk(
    subject: PrunableModel,
    tokens: Tensor,
    statistic: Statistic,
    *,
    rewritten: bool,
    gradient: bool = False,
    following: bool = False,
    refresh: Refresh = "block",
) -> Generator[Visit, None, None]:
    """Yield a visit for each decoder block, or for each of its parts.

    Args:
        subject: The model.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        statistic: Kind of statistic to gather of the inputs. With `Statistic.NONE` the text is not
            run, unless units are the experts of mixtures, whose routing is always gathered.
        rewritten: Whether the caller rewrites each block's weights before it requests the next
            visit. If so, the block is run again for the inputs of the next one; if not, statistics
            in the cache `PrunableModel.kept` are not gathered again.
        gradient: Whether to gather the weights' gradients too, for the weights at the start.
        following: Whether `Evidence.following` is needed; without, it is there where it is free.
        refresh: With ``"sublayer"`` or ``"layer"``, the statistics of a block's later parts are
            gathered after the earlier ones were rewritten.

    Raises:
        ModelError: The forward pass does not use a unit's layer.
    """
    gradients = compute_weight_gradients(subject, tokens) if gradient else {}
    way = _Way(refresh if rewritten else None, following)
    for gathered in _gather(subject, tokens, statistic, way):
        units, statistics = gathered.units, gathered.statistics
        known = subject.units_of(gathered.block)
        evidence = {
            unit.name: Evidence(
                inputs=statistics[unit.name],
                following=statistics.get(_find_following(unit, known) or ""),
                gradient=gradients.pop(unit.name, None),
                structures=subject.views[unit.name].structures,
                routing=gathered.routing.get(unit.name),
            )
            for unit in units
        }
        with subject.present(gathered.block):
            yield Visit(gathered.block, units, statistics, evidence, gathered.notes, gathered.last)


@dataclass(frozen=True)
class _Way:
    """How the blocks are run.

    Attributes:
        refresh: The part that is rewritten at once; None if no weights change.
        following: Whether a unit needs the statistics of the layer that reads its output.
    """

    refresh: Refresh | None
    following: bool = False


class _Part(NamedTuple):
    """Units whose statistics are gathered at once.

    Attributes:
        units: The units, in forward order.
        read: Names of the units whose inputs are gathered: theirs, and those of followers.
        n_calls: Number of calls of these units' layers in a run of the block, after which the
            rest of the run is not needed; 0 if it is.
    """

    units: list[Unit]
    read: list[str]
    n_calls: int = 0


def _gather(
    subject: PrunableModel, tokens: Tensor, statistic: Statistic, way: _Way
) -> Iterator[GatheredBlock]:
    """Yield the data of each block or part."""
    routed = any(isinstance(view, ExpertsView) for view in subject.views.values())
    if statistic is Statistic.NONE and not routed:  # the text is not needed
        for block in range(len(subject.blocks)):
            units = subject.units_of(block)
            empty = {u.name: InputStatistics(0, statistic) for u in units}
            yield GatheredBlock(block, units, True, empty, {}, ())
    elif way.refresh or subject.kept is None:
        yield from _run_blocks(subject, tokens, statistic, way)
    else:
        gather = partial(_run_blocks, subject, tokens, statistic, way)
        yield from subject.kept.reused(subject, tokens, statistic, gather)


def _run_blocks(
    subject: PrunableModel,
    tokens: Tensor,
    statistic: Statistic,
    way: _Way,
    skipped: Collection[int] = (),
) -> Iterator[GatheredBlock]:
    """Run the text through the blocks, and yield the data gathered in all but some."""
    end = max({*range(len(subject.blocks))} - {*skipped}, default=-1) + 1
    if not end:
        return
    runner = BlockRunner(subject, tokens)
    hidden = runner.embed()
    for block in range(end):
        if block in skipped:
            hidden = runner.run(block, hidden)
            continue
        parts = _split(subject, runner, block, hidden, way)
        for part in parts:
            views = {name: subject.views[name] for name in part.read}
            experts = RoutedGatherer(views, statistic)
            plain = [name for name in views if name not in experts.statistics]
            others = _Gatherer(subject, plain, statistic, part.n_calls)
            with others, experts:
                output = others.run(runner, block, hidden)
            _check_called(views, {**others.statistics, **experts.statistics})
            if experts.unrouted:
                with experts.all_tokens():
                    runner.run(block, hidden)
            statistics = {**others.statistics, **experts.statistics}
            last = part is parts[-1]
            told = (experts.routing(), experts.notes())
            yield GatheredBlock(block, part.units, last, statistics, *told)
        hidden = runner.run(block, hidden) if way.refresh else output


def _split(
    subject: PrunableModel, runner: BlockRunner, block: int, hidden: Sequence[Stream], way: _Way
) -> list[_Part]:
    """Return the parts of a block, in forward order; at least one."""
    units = subject.units_of(block)
    if way.refresh == "layer":
        parts = _group_by_input(subject, runner, block, hidden, way.following)
    elif way.refresh == "sublayer":
        groups = _group_by_sublayer(units, f"{subject.prefix}.{block}.")
        parts = [_Part(group, [unit.name for unit in group]) for group in groups]
    else:
        parts = []
    return parts or [_Part(units, [unit.name for unit in units])]


def _group_by_input(
    subject: PrunableModel,
    runner: BlockRunner,
    block: int,
    hidden: Sequence[Stream],
    following: bool,
) -> list[_Part]:
    """Return the units that read one tensor together; those in mixtures are the last part."""
    units = subject.units_of(block)
    views = {unit.name: subject.views[unit.name] for unit in units}
    routed = RoutedGatherer(views, Statistic.NONE).statistics
    plain = [name for name in views if name not in routed]
    inputs = _Gatherer(subject, plain, Statistic.NONE)
    with inputs:
        runner.run(block, hidden[:1])
    _check_called(plain, inputs.statistics)
    groups: dict[int, list[Unit]] = {id(found): [] for found in inputs.statistics.values()}
    mixed: list[Unit] = []
    for unit in units:
        (mixed if unit.name in routed else groups[id(inputs.statistics[unit.name])]).append(unit)
    parts = []
    for group in groups.values():
        read = [unit.name for unit in group]
        if following:
            found = [_find_following(unit, units) for unit in group]
            read += dict.fromkeys(name for name in found if name and name not in read)
        parts.append(_Part(group, read, sum(inputs.n_calls[name] for name in read)))
    return [*parts, *([_Part(mixed, [unit.name for unit in mixed])] if mixed else [])]


def _group_by_sublayer(units: Sequence[Unit], prefix: str) -> list[list[Unit]]:
    """Return the units of each direct child module of the block, in forward order.

    Layers that are direct children themselves form one group.
    """
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        parent, dot, _ = unit.name.removeprefix(prefix).partition(".")
        named_after_module = bool(dot) or unit.cost > 1  # structures are
        groups.setdefault(parent if named_after_module else "", []).append(unit)
    return list(groups.values())


def _check_called(names: Iterable[str], seen: Mapping[str, object]) -> None:
    for name in names:
        if name not in seen:
            raise ModelError(
                f"{name} is not called when the model runs, so it has no input statistics: leave "
                "such layers out with --exclude"
            )


def _find_following(unit: Unit, units: Iterable[Unit]) -> str | None:
    """Return the name of the layer that reads this unit's output, if any."""
    parent = unit.name.rpartition(".")[0]
    for other in units:
        is_next = other.role == FOLLOWED_BY.get(unit.role)
        if is_next and other.name.rpartition(".")[0] == parent:
            return other.name
    return None


class _Enough(Exception):
    """All inputs that are needed of a run of a block are known."""


class _Gatherer:
    """Accumulator of statistics while a block runs, once for each distinct input tensor.

    The first batch shows which units share an input, by the identity of the tensor.

    Args:
        subject: The model.
        names: The units.
        statistic: Kind of statistic to gather.
        n_calls: Calls of the units' layers in a batch, after which `run` ends it; 0 for never.

    Attributes:
        statistics: What is gathered, by unit name, in the order of the first calls.
        n_calls: Calls of each unit's layer so far.
    """

    def __init__(
        self, subject: PrunableModel, names: Sequence[str], statistic: Statistic, n_calls: int = 0
    ) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self.n_calls: Counter[str] = Counter()
        self._enough = n_calls
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
                self.statistics[name].add(self._subject.views[name].inputs(inputs))
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
