"""Building a supernet in one walk over the decoder blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.models.walk import Visit, walk
from sparsity_search.profile import SparsityProfile
from sparsity_search.pruners.base import Pruner
from sparsity_search.rng import derive_seed
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.supernet.supernet import Supernet
from sparsity_search.variants import Variants


@dataclass(frozen=True, kw_only=True)
class SupernetPlan:
    """What a supernet holds and how it is made.

    Attributes:
        pruner: Makes the variants.
        tables: For each unit of the layout, the increasing counts it has variants at.
        centre: A profile whose counts are in the tables.
        propagate: What the blocks after a block see: its output at the ``"centre"`` profile, as
            in sequential pruning, or the ``"dense"`` one (EvoPress, arXiv 2410.14649).
        seed: Breaks ties among scores.
    """

    pruner: Pruner
    tables: Sequence[tuple[int, ...]]
    centre: SparsityProfile
    propagate: Literal["centre", "dense"] = "centre"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pruner.merges:
            raise ConfigError(
                "this pruner merges removed units into kept ones, which a search cannot mix: "
                "search with drop, then prune with it"
            )


def build(
    subject: PrunableModel,
    tokens: Tensor,
    plan: SupernetPlan,
    folder: SupernetFolder | None = None,
    on_block: Callable[[int], None] = lambda _: None,
) -> Supernet:
    """Build a supernet, or finish building the one in ``folder``.

    Args:
        subject: The model; its weights are as before afterwards, whatever happens.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        plan: What to build.
        folder: Keeps finished blocks on disk; by default all is in memory.
        on_block: Called with the index of each block when it is done.
    """
    variants: dict[str, Variants] = {}
    if folder and folder.complete(len(subject.blocks)):
        for block in range(len(subject.blocks)):
            variants.update(folder.load(block))
        return Supernet(subject, variants)
    tables = dict(zip((unit.name for unit in subject.layout), plan.tables, strict=True))
    with subject.preserved():
        rewritten = plan.propagate == "centre"
        for visit in walk(
            subject,
            tokens,
            plan.pruner.requires,
            rewritten=rewritten,
            gradient=plan.pruner.needs_gradient,
        ):
            made = folder.load(visit.block) if folder and folder.has(visit.block) else None
            if made is None:
                made = _prune_block(subject, visit, plan, tables)
                if folder:
                    folder.save(visit.block, made)
            variants.update(made)
            if rewritten:
                _write_centre(subject, visit, plan, made)
            on_block(visit.block)
    return Supernet(subject, variants)


def _prune_block(
    subject: PrunableModel,
    visit: Visit,
    plan: SupernetPlan,
    tables: dict[str, tuple[int, ...]],
) -> dict[str, Variants]:
    return {
        unit.name: plan.pruner.prune(
            subject.views[unit.name].read(),
            visit.evidence[unit.name],
            tables[unit.name],
            seed=derive_seed(plan.seed, "ties", unit.name),
        )
        for unit in visit.units
    }


def _write_centre(
    subject: PrunableModel, visit: Visit, plan: SupernetPlan, made: dict[str, Variants]
) -> None:
    for unit in visit.units:
        view = subject.views[unit.name]
        count = plan.centre.removed[subject.layout.position(unit.name)]
        view.write(made[unit.name].at(view.read(), count))
