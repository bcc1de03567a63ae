"""The prunable units of a model, and an estimate of a search on it, before any work."""

from __future__ import annotations

from dataclasses import dataclass

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.estimate import SearchEstimate, draw_tokens, estimate
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_budget, build_pruner, choose_units
from sparsity_search.engine.session import open_session
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.unpruned import (
    UnprunedParameter,
    find_shared_names,
    list_unpruned,
)
from sparsity_search.models.io.source import Source
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.registry import EVALUATORS, Factory
from sparsity_search.spaces.files import SpaceFile, load_space

#: If none is given: what a search takes depends little on it.
DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True)
class InspectionResult:
    """The outcome of `inspect`.

    Attributes:
        blocks: Name of the module list that holds the decoder blocks.
        layout: The prunable units.
        shapes: Shape of each unit's weight, by name.
        left_alone: Weights in no unit, and why.
        shared: Names of each parameter that has several.
        types: Number types and device.
        estimate: Time and memory of a search.
    """

    blocks: str
    layout: Layout
    shapes: dict[str, tuple[int, ...]]
    left_alone: list[UnprunedParameter]
    shared: list[tuple[str, ...]]
    types: str
    estimate: SearchEstimate


def inspect(config: RunConfig, monitor: Monitor | None = None) -> InspectionResult:
    """Load a model, list its prunable units, and time small samples of a search.

    No text is needed: random tokens take as long as any.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    monitor = monitor or Monitor()
    pruner = build_pruner(config)
    evaluator = Factory().resolve(EVALUATORS, config.evaluator.spec)
    space_file = load_space(config.space).of_levels
    budget = _choose_budget(config, space_file, pruner)
    kind = choose_units(config, pruner)
    session = open_session(config.model, [], config.study.seed, monitor, units=kind)
    subject, model = session.subject, session.loaded.model
    space = space_file.build(
        subject.layout, budget, config.budget.bounds, hidden_size=session.hidden_size
    )
    with monitor.step("time samples"):
        tokens = draw_tokens(session, config.data.search_length)
        proxy = evaluator.bind(model, tokens, session.loaded.tokenizer)
        expected = estimate(session, config, pruner, proxy, space)
    return InspectionResult(
        blocks=subject.prefix,
        layout=subject.layout,
        shapes={name: tuple(view.read().shape) for name, view in subject.one_by_one()},
        left_alone=[*list_unpruned(subject), *_list_not_loaded(session.loaded.source)],
        shared=find_shared_names(model),
        types=session.types,
        estimate=expected,
    )


def _list_not_loaded(source: Source | None) -> list[UnprunedParameter]:
    """Return the tensors of the checkpoint that no parameter of the model holds."""
    if source is None:
        return []
    why = "not loaded, copied"
    return [
        UnprunedParameter(name, source.tensors[name].shape.numel(), why)
        for name in source.left_alone
    ]


def _choose_budget(config: RunConfig, space: SpaceFile, pruner: Pruner) -> Budget:
    asked = config.budget
    if asked.sparsity is None and asked.saving is None and not space.options:
        return Budget(DEFAULT_SPARSITY)
    return build_budget(config, space, pruner)
