"""The walk over the blocks that every use of calibration text shares.

At each block, the walk gathers the statistics of its inputs, yields them to the caller, and
continues with the block's output. If the caller does not change the block's weights, the next
blocks get dense inputs; if the caller prunes them, they get the outputs of the pruned block
(sequential pruning). A walk by sublayers visits each block several times, so that the
feed-forward gets the outputs of the pruned attention.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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
from sparsity_search.profiles.layout import Unit

#: Part of the model for which statistics are gathered at once.
Refresh = Literal["block", "sublayer"]


@dataclass(frozen=True)
class Visit:
    """One block of a walk, or one of its sublayers.

    Attributes:
        block: Index of the block.
        units: Its units, or those of the sublayer, in forward order.
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
    refresh: Refresh = "block",
) -> Generator[Visit, None, None]:
    """Yield a visit for each decoder block, or for each of its sublayers.

    Args:
        subject: The model.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        statistic: Kind of statistic to gather of the inputs. With `Statistic.NONE` the text is not
            run, unless units are the experts of mixtures, whose routing is always gathered.
        rewritten: Whether the caller rewrites each block's weights before it requests the next
            visit. If so, the block is run again for the inputs of the next one; if not, statistics
            in the cache `PrunableModel.kept` are not gathered again.
        gradient: Whether to gather the weights' gradients too, for the weights at the start.
        refresh: With ``"sublayer"``, the statistics of a block's later sublayers are gathered
            after the earlier ones were rewritten.

    Raises:
        ModelError: The forward pass does not use a unit's layer.
    """
    gradients = compute_weight_gradients(subject, tokens) if gradient else {}
    for gathered in _gather(subject, tokens, statistic, refresh if rewritten else None):
        units, statistics = gathered.units, gathered.statistics
        evidence = {
            unit.name: Evidence(
                inputs=statistics[unit.name],
                following=_find_following(unit, units, statistics),
                gradient=gradients.pop(unit.name, None),
                structures=subject.views[unit.name].structures,
                routing=gathered.routing.get(unit.name),
            )
            for unit in units
        }
        with subject.present(gathered.block):
            yield Visit(gathered.block, units, statistics, evidence, gathered.notes, gathered.last)


def _gather(
    subject: PrunableModel, tokens: Tensor, statistic: Statistic, rewritten: Refresh | None
) -> Iterator[GatheredBlock]:
    """Yield the data of each block or sublayer; ``rewritten`` is None if no weights change."""
    routed = any(isinstance(view, ExpertsView) for view in subject.views.values())
    if statistic is Statistic.NONE and not routed:  # the text is not needed
        for block in range(len(subject.blocks)):
            units = subject.units_of(block)
            empty = {u.name: InputStatistics(0, statistic) for u in units}
            yield GatheredBlock(block, units, True, empty, {}, ())
    elif rewritten or subject.kept is None:
        yield from _run_blocks(subject, tokens, statistic, rewritten)
    else:
        gather = partial(_run_blocks, subject, tokens, statistic, None)
        yield from subject.kept.reused(subject, tokens, statistic, gather)


def _run_blocks(
    subject: PrunableModel,
    tokens: Tensor,
    statistic: Statistic,
    rewritten: Refresh | None,
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
        parts = [subject.units_of(block)]
        if rewritten == "sublayer":
            parts = _group_by_sublayer(parts[0], f"{subject.prefix}.{block}.") or parts
        for units in parts:
            views = {unit.name: subject.views[unit.name] for unit in units}
            experts = RoutedGatherer(views, statistic)
            plain = [name for name in views if name not in experts.statistics]
            others = _Gatherer(subject, plain, statistic)
            with others, experts:
                output = runner.run(block, hidden)
            _check_called(views, {**others.statistics, **experts.statistics})
            if experts.unrouted:
                with experts.all_tokens():
                    runner.run(block, hidden)
            statistics = {**others.statistics, **experts.statistics}
            last = units is parts[-1]
            yield GatheredBlock(block, units, last, statistics, experts.routing(), experts.notes())
        hidden = runner.run(block, hidden) if rewritten else output


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


def _find_following(
    unit: Unit, units: Sequence[Unit], statistics: dict[str, InputStatistics]
) -> InputStatistics | None:
    """Return the input statistics of the layer that reads this unit's output, if any."""
    parent = unit.name.rpartition(".")[0]
    for other in units:
        is_next = other.role == FOLLOWED_BY.get(unit.role)
        if is_next and other.name.rpartition(".")[0] == parent:
            return statistics[other.name]
    return None


class _Gatherer:
    """Accumulator of statistics while a block runs, once for each distinct input tensor.

    The first batch shows which units share an input, by the identity of the tensor.
    """

    def __init__(self, subject: PrunableModel, names: Sequence[str], statistic: Statistic) -> None:
        self.statistics: dict[str, InputStatistics] = {}
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

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            if name not in self.statistics:
                self._join(name, inputs)
            if name in self._leaders:
                self.statistics[name].add(self._subject.views[name].inputs(inputs))

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
