"""Building a supernet in one walk over the decoder blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.variants import UnchangedVariants, Variants, move_to_cpu
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Refresh, Visit
from sparsity_search.profiles.layout import Unit
from sparsity_search.profiles.profile import SparsityProfile, count_pattern_zeros
from sparsity_search.pruning.patterns import with_pattern
from sparsity_search.pruning.walk import visit_units, walk_for
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.supernet.switch import Supernet, get_variants_name

#: The output of a block that later blocks of a supernet see.
Propagate = Literal["centre", "dense", "expectation", "mean"]


@dataclass(frozen=True, kw_only=True)
class SupernetDesign:
    """The contents of a supernet, and how it is built.

    Attributes:
        pruner: Makes the variants.
        tables: For each unit of the layout, the increasing counts it has variants at.
        centre: A profile whose counts are in the tables.
        propagate: The output of a block that later blocks see: that at the ``"centre"`` profile,
            as in sequential pruning; the ``"dense"`` one (EvoPress, arXiv 2410.14649); or that of
            weights mixed from all variants of each unit, by the share that each keeps
            (``"expectation"``, Týr-the-Pruner, arXiv 2503.09657, equation 5) or equally
            (``"mean"``).
        refresh: What is rewritten at once, before statistics are gathered anew, see
            `models.running.walk.walk`; means nothing with ``"dense"``.
        seed: Breaks ties among scores.
        patterns: For each unit the ``N:M`` it can have, one variant each in place of its table;
            then it can stay dense too. Empty where the pruner's own pattern is the only one.
    """

    pruner: Pruner
    tables: Sequence[tuple[int, ...]]
    centre: SparsityProfile
    propagate: Propagate = "centre"
    refresh: Refresh = "layer"
    seed: int = 0
    patterns: Sequence[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.pruner.merges:
            raise ConfigError(
                "this pruner merges removed units into kept ones, which a search cannot mix: "
                "search with drop, then prune with it"
            )


def build_supernet(
    subject: PrunableModel,
    tokens: Tensor,
    design: SupernetDesign,
    folder: SupernetFolder | None = None,
    on_block: Callable[[int], None] = lambda _: None,
) -> Supernet:
    """Build a supernet, or finish building the one in ``folder``.

    Args:
        subject: The model; its weights are as before afterwards, whatever happens.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        design: What to build.
        folder: Keeps finished blocks on disk; by default all is in memory.
        on_block: Called with the index of each block when it is done.
    """
    variants: dict[str, Variants] = {}
    if folder and folder.complete(len(subject.blocks)):
        return Supernet(subject, _load_stored(subject, folder))
    with subject.preserved():
        rewritten = design.propagate != "dense"
        made: dict[str, Variants] = {}
        for visit in walk_for(
            design.pruner, subject, tokens, rewritten=rewritten, refresh=design.refresh
        ):
            known = folder is not None and folder.has(visit.block)
            if folder and known:
                made = folder.load(visit.block)
            else:
                made |= _prune(subject, visit, design)
            if rewritten:
                _rewrite(subject, visit, design, Supernet(subject, made))
            if not visit.last:
                continue
            if folder and not known:
                folder.save(visit.block, made)
            if folder is None:
                variants.update(made if subject.offload is None else move_to_cpu(made))
            made = {}
            on_block(visit.block)
    return Supernet(subject, variants if folder is None else _load_stored(subject, folder))


def _load_stored(subject: PrunableModel, folder: SupernetFolder) -> dict[str, Variants]:
    """Return the variants of all blocks, mapped from the files."""
    found: dict[str, Variants] = {}
    for block in range(len(subject.blocks)):
        found.update(folder.load(block))
    return found


def split_by_pattern(
    pruner: Pruner, unit: Unit, table: tuple[int, ...], patterns: Sequence[str] = ()
) -> dict[str, tuple[Pruner, tuple[int, ...]]]:
    """Return the pruner and the counts of each set of variants of a unit, by `get_variants_name`.

    Args:
        pruner: Makes the variants.
        unit: The unit.
        table: Counts in the pruner's own pattern.
        patterns: ``N:M`` in its place, if any; each has one count.
    """
    if not patterns:
        return {unit.name: (pruner, table)}
    return {
        get_variants_name(unit.name, pattern): (
            with_pattern(pruner, pattern),
            (count_pattern_zeros(unit, pattern),),
        )
        for pattern in patterns
    }


def _prune(subject: PrunableModel, visit: Visit, design: SupernetDesign) -> dict[str, Variants]:
    """Return the variants of the units visited."""
    made: dict[str, Variants] = {}
    for reached in visit_units(subject, visit):
        unit = reached.unit
        position = subject.layout.position(unit.name)
        patterns = design.patterns[position] if design.patterns else ()
        by_name = split_by_pattern(design.pruner, unit, design.tables[position], patterns)
        for name, (pruner, counts) in by_name.items():
            made[name] = reached.prune(pruner, counts, design.seed).packed()
        made.setdefault(unit.name, UnchangedVariants(counts=(unit.zeros,)))
    return made


def _rewrite(subject: PrunableModel, visit: Visit, design: SupernetDesign, made: Supernet) -> None:
    """Write the weights that later units should see."""
    for unit in visit.units:
        view = subject.views[unit.name]
        position = subject.layout.position(unit.name)
        dense = view.read()
        if design.propagate == "centre":
            view.write(made.weight(unit.name, dense, *design.centre.states[position]))
        else:
            view.write(_mix_variants(unit, dense.clone(), made, design))


def _mix_variants(unit: Unit, dense: Tensor, made: Supernet, design: SupernetDesign) -> Tensor:
    """Return the mean of a unit's variants: its output is the mean of theirs.

    In the expectation a variant weighs as much as it keeps; if none keeps anything, all weigh
    alike.
    """
    position = made.subject.layout.position(unit.name)
    patterns = design.patterns[position] if design.patterns else ()
    states = [(count, "") for count in design.tables[position]]
    if patterns:
        states = [
            (unit.zeros, ""),
            *((count_pattern_zeros(unit, pattern), pattern) for pattern in patterns),
        ]
    shares = [1 - count / unit.count for count, _ in states]
    if design.propagate == "mean" or not sum(shares):
        shares = [1.0] * len(states)
    mixed = torch.zeros_like(dense, dtype=torch.float32)
    for share, state in zip(shares, states, strict=True):
        if share:
            mixed += share / sum(shares) * made.weight(unit.name, dense, *state)
    return mixed.to(dense.dtype)
