"""The walk over the blocks that every use of calibration text shares.

At each block it gathers the statistics of its inputs, hands them to the caller, and goes on with
the block's output. What the caller does to the block's weights in between decides what the next
blocks see: nothing (dense inputs), or the pruned block (sequential pruning). A walk by sublayers
comes to each block several times, so that its feed-forward sees the pruned attention.
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
from sparsity_search.models.anatomy.experts import ExpertsView
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.roles import FOLLOWED_BY
from sparsity_search.models.running.gradients import weight_gradients
from sparsity_search.models.running.kept import Gathered
from sparsity_search.models.running.routing import RoutedGatherer
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.layout import Unit

#: What is visited at once.
Refresh = Literal["block", "sublayer"]


@dataclass(frozen=True)
class Visit:
    """One block of a walk, or one of its sublayers.

    Attributes:
        block: Index of the block.
        units: Its units, or those of the sublayer, in forward order.
        statistics: Of each unit's input, by unit name; units that read one tensor share one
            object, and with it one factorisation.
        evidence: What is known of each unit, by name.
        notes: What there is to tell of the statistics, e.g. of experts that get no tokens.
        last: Whether the block is not visited again.
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
        statistic: What to gather of the inputs; for nothing, the text is not run, unless units
            are the experts of mixtures, whose routing is always gathered.
        rewritten: The caller rewrites each block's weights before it asks for the next visit, so
            that the block has to run again for what the next one sees. Without, what
            `PrunableModel.kept` has is not gathered again.
        gradient: Gather the weights' gradients too, those of the model as it is at the start.
        refresh: With ``"sublayer"`` the statistics of a block's later sublayers are gathered
            after the earlier ones were rewritten.

    Raises:
        ModelError: A unit's layer takes no part when the model runs.
    """
    gradients = weight_gradients(subject, tokens) if gradient else {}
    for found in _gathered(subject, tokens, statistic, refresh if rewritten else None):
        units = found.units
        evidence = {
            unit.name: Evidence(
                inputs=found.statistics[unit.name],
                following=_following(unit, units, found.statistics),
                gradient=gradients.pop(unit.name, None),
                structures=subject.views[unit.name].structures,
                routing=found.routing.get(unit.name),
            )
            for unit in units
        }
        with subject.present(found.block):
            yield Visit(found.block, units, found.statistics, evidence, found.notes, found.last)


def _gathered(
    subject: PrunableModel, tokens: Tensor, statistic: Statistic, rewritten: Refresh | None
) -> Iterator[Gathered]:
    """Yield what is gathered in each block or sublayer; None: the weights stay as they are."""
    routed = any(isinstance(view, ExpertsView) for view in subject.views.values())
    if statistic is Statistic.NONE and not routed:  # then the text need not be run at all
        for block in range(len(subject.blocks)):
            units = subject.units_of(block)
            nothing = {u.name: InputStatistics(0, statistic) for u in units}
            yield Gathered(block, units, True, nothing, {}, ())
    elif rewritten or subject.kept is None:
        yield from _run(subject, tokens, statistic, rewritten)
    else:
        gather = partial(_run, subject, tokens, statistic, None)
        yield from subject.kept.reused(subject, tokens, statistic, gather)


def _run(
    subject: PrunableModel,
    tokens: Tensor,
    statistic: Statistic,
    rewritten: Refresh | None,
    known: Collection[int] = (),
) -> Iterator[Gathered]:
    """Run the text through the blocks, and look at all but those that are known."""
    end = max({*range(len(subject.blocks))} - {*known}, default=-1) + 1
    if not end:
        return
    runner = BlockRunner(subject, tokens)
    hidden = runner.embed()
    for block in range(end):
        if block in known:
            hidden = runner.run(block, hidden)
            continue
        parts = [subject.units_of(block)]
        if rewritten == "sublayer":
            parts = _sublayers(parts[0], f"{subject.prefix}.{block}.") or parts
        for units in parts:
            views = {unit.name: subject.views[unit.name] for unit in units}
            experts = RoutedGatherer(views, statistic)
            plain = [name for name in views if name not in experts.statistics]
            others = _Gatherer(subject, plain, statistic)
            with others, experts:
                output = runner.run(block, hidden)
            _refuse_unseen(views, {**others.statistics, **experts.statistics})
            if experts.unrouted:
                with experts.all_tokens():
                    runner.run(block, hidden)
            found = {**others.statistics, **experts.statistics}
            last = units is parts[-1]
            yield Gathered(block, units, last, found, experts.routing(), experts.notes())
        hidden = runner.run(block, hidden) if rewritten else output


def _sublayers(units: Sequence[Unit], prefix: str) -> list[list[Unit]]:
    """Return the units of each module right below the block, in forward order.

    Layers that lie right below the block themselves belong together.
    """
    found: dict[str, list[Unit]] = {}
    for unit in units:
        parent, dot, _ = unit.name.removeprefix(prefix).partition(".")
        named_after_module = bool(dot) or unit.cost > 1  # structures are
        found.setdefault(parent if named_after_module else "", []).append(unit)
    return list(found.values())


def _refuse_unseen(names: Iterable[str], seen: Mapping[str, object]) -> None:
    for name in names:
        if name not in seen:
            raise ModelError(
                f"{name} is not called when the model runs, so that nothing is known of its "
                "inputs: leave such layers out with --exclude"
            )


def _following(
    unit: Unit, units: Sequence[Unit], statistics: dict[str, InputStatistics]
) -> InputStatistics | None:
    """Return the statistics of what a gated feed-forward makes of this unit's output."""
    parent = unit.name.rpartition(".")[0]
    for other in units:
        is_next = other.role == FOLLOWED_BY.get(unit.role)
        if is_next and other.name.rpartition(".")[0] == parent:
            return statistics[other.name]
    return None


class _Gatherer:
    """Accumulates statistics while a block runs: once for each distinct input tensor.

    Which units share an input is seen in the first batch, by the identity of the tensor.
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
        """Share the statistics of a unit that read this very tensor, or lead new ones."""
        for seen, leader in self._current:
            if seen is inputs:
                self.statistics[name] = self.statistics[leader]
                return
        self._leaders.add(name)
        self._current.append((inputs, name))
        self.statistics[name] = InputStatistics(
            inputs.shape[-1], self._statistic, device=inputs.device
        )
