"""What can be pruned in a model, and what a search on it would take, before any work."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.budget import Budget
from sparsity_search.config import RunConfig
from sparsity_search.evaluators.base import Proxy
from sparsity_search.layout import Layout
from sparsity_search.models.walk import walk
from sparsity_search.pruners.base import Pruner
from sparsity_search.registry import EVALUATORS, PRUNERS
from sparsity_search.space import SearchSpace
from sparsity_search.spaces import SpaceFile, load_space
from sparsity_search.supernet.build import tasks
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.plugins import budget_of, unit_kind
from sparsity_search.workflow.session import Session, open_session

#: If none is given: what a search takes depends little on it.
DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True)
class Estimate:
    """What a search would take on this machine, from short samples of its parts.

    Attributes:
        evaluation_seconds: One evaluation at each rung, by its tokens.
        round_seconds: One round of the ladder, at most.
        supernet_seconds: Building the supernet.
        supernet_bytes: Its size, in memory or on disk.
        resident_bytes: Model, dense copy of the prunable weights, and supernet.
        checkpoint_bytes: The pruned checkpoint on disk.
    """

    evaluation_seconds: dict[int, float]
    round_seconds: float
    supernet_seconds: float
    supernet_bytes: int
    resident_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Inspection:
    """The outcome of `inspect`.

    Attributes:
        layout: The prunable units.
        shapes: Shape of each unit's weight, by name.
        left_alone: Weights outside of them, by parameter name.
        estimate: What a search would take.
    """

    layout: Layout
    shapes: dict[str, tuple[int, ...]]
    left_alone: dict[str, int]
    estimate: Estimate


def inspect(config: RunConfig, monitor: Monitor | None = None) -> Inspection:
    """Load a model, list its prunable units, and time small samples of a search.

    No text is needed: random tokens take as long as any.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    monitor = monitor or Monitor()
    pruner = PRUNERS.create(config.pruner.name, **config.pruner.parameters)
    evaluator = EVALUATORS.create(config.evaluator.name, **config.evaluator.parameters)
    space_file = load_space(config.space).of_levels
    budget = _budget(config, space_file, pruner)
    kind = unit_kind(config, pruner)
    session = open_session(config.model, [], config.study.seed, monitor, kind)
    layout = session.subject.layout
    space = space_file.build(layout, budget, config.budget.bounds)
    with monitor.stage("time samples"):
        tokens = _random_tokens(session, config.data.search_length)
        proxy = evaluator.bind(session.loaded.model, tokens, session.loaded.tokenizer)
        sequence = _timed_score(proxy, session)
        seconds, size = _supernet(session, pruner, space, config)
    ladder = config.ladder.build()
    per_rung = {r.tokens: sequence * r.tokens / config.data.search_length for r in ladder.rungs}
    entering = [ladder.candidates, *(rung.survivors for rung in ladder.rungs)]
    round_seconds = sum(n * s for n, s in zip(entering, per_rung.values(), strict=False))
    model = sum(p.numel() * p.element_size() for p in session.loaded.model.parameters())
    views = session.subject.views.values()
    dense = sum(v.read().numel() * v.read().element_size() for v in views)
    estimate = Estimate(per_rung, round_seconds, seconds, size, model + dense + size, model)
    shapes = {name: tuple(view.read().shape) for name, view in session.subject.views.items()}
    return Inspection(layout, shapes, _left_alone(session), estimate)


def _budget(config: RunConfig, space: SpaceFile, pruner: Pruner) -> Budget:
    asked = config.budget
    if asked.sparsity is None and asked.saving is None and not space.options:
        return Budget(DEFAULT_SPARSITY)
    return budget_of(config, space, pruner)


def _left_alone(session: Session) -> dict[str, int]:
    pruned = {id(parameter) for parameter in session.subject.parameters()}
    return {
        name: parameter.numel()
        for name, parameter in session.loaded.model.named_parameters()
        if id(parameter) not in pruned
    }


def _random_tokens(session: Session, length: int) -> Tensor:
    vocabulary = session.loaded.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, length), generator=generator)


def _timed_score(proxy: Proxy, session: Session) -> float:
    """Return the seconds to score one sequence, after one that warms up."""
    proxy.score(session.loaded.model, [0])
    started = time.monotonic()
    proxy.score(session.loaded.model, [0])
    return time.monotonic() - started


def _supernet(
    session: Session, pruner: Pruner, space: SearchSpace, config: RunConfig
) -> tuple[float, int]:
    """Return seconds and bytes of a supernet, from its first block and one sequence."""
    subject, data = session.subject, config.data
    tables, patterns = space.tables(), space.patterns()
    tokens = _random_tokens(session, data.calibration_length)
    started = time.monotonic()
    gradient = pruner.needs_gradient
    visits = walk(subject, tokens, pruner.requires, rewritten=False, gradient=gradient)
    visit = next(iter(visits))
    walked = time.monotonic() - started
    started, size = time.monotonic(), 0
    for unit in visit.units:
        position = subject.layout.position(unit.name)
        weight = subject.views[unit.name].read()
        for by, counts in tasks(pruner, unit, tables[position], patterns[position]).values():
            variants = by.prune(weight, visit.evidence[unit.name], counts, seed=0)
            size += sum(t.numel() * t.element_size() for t in variants.tensors().values())
    pruned = time.monotonic() - started
    # the sample's walk is one whole forward pass of one sequence; a build passes each block twice
    passes = 2 * walked * data.calibration_sequences
    n_blocks = len(subject.blocks)
    return pruned * n_blocks + passes, size * n_blocks
