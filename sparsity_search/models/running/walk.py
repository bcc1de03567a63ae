"""The walk over the blocks that every use of calibration text shares.

At each block, the walk gathers the statistics of its inputs, yields them to the caller, and
continues with the block's output. If the caller does not change the block's weights, the next
blocks get dense inputs; if the caller prunes them, they get the outputs of the pruned block
(sequential pruning). A walk by sublayers or layers visits each block several times, so that the
feed-forward gets the outputs of the pruned attention, or each layer those of all pruned before it.
"""

from __future__ import annotations

from collections.abc import (
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.roles import FOLLOWED_BY
from sparsity_search.models.anatomy.whole_experts import ExpertsView
from sparsity_search.models.running.gathering import Gatherer, Inputs, record_inputs
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.replay import Closing, Replay, watch_closings
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
    dense_inputs: bool = False,
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
        dense_inputs: Whether `InputStatistics.cross` is needed; it is there with ``"layer"`` only,
            since it would make up twice for what layers of one visit lose, and not in mixtures.
        refresh: With ``"sublayer"`` or ``"layer"``, the statistics of a block's later parts are
            gathered after the earlier ones were rewritten.

    Raises:
        ModelError: The forward pass does not use a unit's layer.
    """
    gradients = compute_weight_gradients(subject, tokens) if gradient else {}
    way = _Way(refresh if rewritten else None, following, dense_inputs)
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
        dense_inputs: Whether units need the dense model's inputs, if layers are rewritten.
    """

    refresh: Refresh | None
    following: bool = False
    dense_inputs: bool = False

    @property
    def runs_dense(self) -> bool:
        """Whether the dense model runs beside the pruned one."""
        return self.dense_inputs and self.refresh == "layer"


class _Part(NamedTuple):
    """Units whose statistics are gathered at once.

    Attributes:
        units: The units, in forward order.
        read: Names of the units whose inputs are gathered: theirs, and those of followers.
        n_calls: Number of calls of these units' layers in a run of the block, after which the
            rest of the run is not needed; 0 if it is.
        closings: Those of the units' layers after which a submodule need not run again.
    """

    units: list[Unit]
    read: list[str]
    n_calls: int = 0
    closings: Sequence[Closing] = ()


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
    dense = hidden if way.runs_dense else []
    for block in range(end):
        if block in skipped:
            hidden = runner.run(block, hidden)
            continue
        parts = _split(subject, runner, block, hidden, way)
        replay = Replay(subject.blocks[block], runner)
        wanted: Inputs = {}
        if way.runs_dense:
            names = [name for part in parts for name in part.read if part.n_calls]
            wanted, dense = record_inputs(subject, names, runner, block, dense)
        for part in parts:
            views = {name: subject.views[name] for name in part.read}
            experts = RoutedGatherer(views, statistic)
            plain = [name for name in views if name not in experts.statistics]
            others = Gatherer(subject, plain, statistic, part.n_calls, wanted)
            with replay.run(part.closings), others, experts:
                output = others.run(runner, block, hidden)
            _check_called(views, {**others.statistics, **experts.statistics})
            if experts.unrouted:
                with experts.all_tokens():
                    runner.run(block, hidden)
            statistics = {**others.statistics, **experts.statistics}
            last = part is parts[-1]
            told = (experts.routing(), experts.notes())
            yield GatheredBlock(block, part.units, last, statistics, *told)
        if way.refresh:
            with replay.run():
                output = runner.run(block, hidden)
        hidden = output


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
    inputs = Gatherer(subject, plain, Statistic.NONE)
    layers = {views[name].module for name in plain}
    with watch_closings(subject.blocks[block], layers) as closings, inputs:
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
    if mixed:
        return [*parts, _Part(mixed, [unit.name for unit in mixed])]
    # what a submodule writes for other blocks is not replayed, and structures have several layers
    writes = any(isinstance(each, MutableMapping) for each in hidden[0].calls[block].values())
    if writes or any(unit.cost > 1 for unit in units):
        return parts
    return _add_closings(subject, parts, closings)


def _add_closings(
    subject: PrunableModel, parts: Sequence[_Part], closings: Sequence[Closing]
) -> list[_Part]:
    """Return parts with the closings of submodules that have no unit of a later part.

    The last part has none: only one run follows it.
    """
    found: list[_Part] = []
    later: set[nn.Module] = set()
    for part in reversed(parts):
        layers = {subject.views[unit.name].module for unit in part.units}
        own = [c for c in closings if c.layer in layers and later.isdisjoint(c.module.modules())]
        found.insert(0, part._replace(closings=own if found else []))
        later |= layers
    return found


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
