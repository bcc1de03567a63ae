"""Shapes of the JSON files of a run directory: what their readers rely on."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from sparsity_search.utils.shapes import Count, Shape, Size


class _Named(Shape):
    """A plugin or a model by name."""

    name: str


class _Budget(Shape):
    """The budget that was asked for."""

    sparsity: float | None = None
    saving: float | None = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.sparsity is None and self.saving is None:
            raise ValueError("neither a sparsity nor a saving")
        return self


class _Rung(Shape):
    """A rung of the ladder."""

    tokens: Size
    survivors: Size


class _Ladder(Shape):
    """The ladder."""

    rungs: list[_Rung] = Field(min_length=1)
    fresh: bool = False


class _Study(Shape):
    """The limits of the search."""

    storage: str | None = None


class _Config(Shape):
    """The configuration of a run, of any version of the package."""

    model: _Named
    budget: _Budget
    space: str
    pruner: _Named
    searcher: _Named
    evaluator: _Named
    ladder: _Ladder
    study: _Study
    initial: list[str] = Field([])


class _Model(Shape):
    """The model that was measured."""

    name: str
    revision: str | None = None
    digest: str = ""


class RunShape(Shape):
    """``run.json``: how a run was made."""

    config: _Config
    layout: list[Any]
    model: _Model | None = None
    text: dict[str, dict[str, str | int]] = Field({})
    versions: dict[str, str] = Field({})
    fingerprint: dict[str, Any]
    prices: dict[str, Any] | None = None
    study: str | None = None


class _Result(Shape):
    """A profile of the final comparison; older runs lack its digest and its pruner."""

    name: str
    profile: str | None = None
    pruner: _Named | None = None
    score: float | None = None
    perplexity: float | None = None
    sparsity: float
    saving: float | None = None
    removed: Count


class _Search(Shape):
    """The size of the search."""

    rounds: Count = 0
    measurements: Count = 0
    seconds: float = 0.0
    parameters: dict[str, Any] | None = None


class ResultsShape(Shape):
    """``results.json``: how a run ended."""

    rows: list[_Result]
    shipped: str | None = None
    search: _Search | None = None
    seconds: dict[str, float] = Field({})
    notes: list[str] = Field([])


class HintShape(Shape):
    """The file of a hint."""

    name: str
    space: str
    losses: list[list[float]]


class StartsShape(Shape):
    """The profiles that each stage starts from, by name."""

    stages: list[dict[str, dict[str, Any]]]


class StagesShape(Shape):
    """The name of each stage's study."""

    studies: list[str]


class _Step(Shape):
    """A candidate of a search."""

    name: str
    key: str
    profile: dict[str, Any]
    pruner: _Named
    row: _Result
    parts: list[float | None]
    best: bool
    seconds: float
    elapsed: float
    notes: list[str] = Field([])


class StepsShape(Shape):
    """``steps.json``: the candidates of a search."""

    steps: list[_Step]
    seconds: float
    studies: dict[str, list[float]] = Field({})
