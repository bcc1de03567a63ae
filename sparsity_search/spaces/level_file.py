"""The file of a space of levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypedDict

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from sparsity_search.errors import ConfigError, UnknownNameError, suggest_name
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.spaces.choices import list_pattern_counts, option_prices
from sparsity_search.spaces.even_levels import EvenLevels
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.pattern_levels import CountLevels, PatternLevels
from sparsity_search.spaces.prices import Prices
from sparsity_search.spaces.separate_levels import build_separately
from sparsity_search.spaces.step_levels import ShareLevels, StepLevels, share_equally
from sparsity_search.spaces.tables import Groups

#: The step that EvoPress takes if none is given.
_BY_HIDDEN_SIZE = "by_hidden_size"
#: Sparsity limits by role, each within [0, 1].
RoleBounds = Mapping[str, tuple[float, float]]

_NofM = Annotated[str, StringConstraints(pattern=r"^\d+:\d+$")]
_Weights = Annotated[int, Field(ge=1)]
_Saving = Annotated[float, Field(gt=0, le=1)]


class _Common(TypedDict):
    """The arguments that all spaces of levels have."""

    layout: Layout
    budget: Budget
    bounds: Bounds
    genes: tuple[tuple[int, ...], ...]
    reach: int


class SpaceFile(BaseModel):
    """The contents of the file of a space of levels.

    Attributes:
        version: Version of this format.
        description: One line for `sparsity-search ls spaces`.
        gene: Attributes that tie units: units that agree in all of them share one level.
        groups: Roles by group name, for a gene that names ``group``.
        step: Weights that one level moves, as a fraction of the smallest gene. If the target
            leaves little room, it is reduced so that the gene with most room has four levels
            either way. Structures move whole: a level is as many as the step holds, at least one.
        weights: Weights that one level moves; replaces ``step``. ``by_hidden_size`` is what the
            code of EvoPress takes by default: ``0.5 · min(S, 1 - S) / reach · hidden_size²`` at
            sparsity S, rounded down (``prune.py``).
        share: Weights that one level moves each gene, as a fraction of its own; replaces
            ``step``.
        pattern: ``N:M`` (each unit keeps N of M weights, or is dense) or ``*:M`` (any number of
            M); replaces the three above.
        options: The ``N:M`` patterns that a unit may have; replaces the four above. The budget
            is then in savings. A mapping gives the saving of each pattern as a fraction of the
            cost of a dense unit (measured time, bytes or energy); the cost of a unit is
            proportional to its weights. A list has no savings: a measure prices its patterns.
        reach: Most levels up or down.
        budget_per: ``role`` gives each role a budget of its own: the target fraction of its
            weights, see `SeparateLevels`. By default there is one budget for all units, and with
            options always.
        bounds: Least and greatest sparsity by role; other roles have no bounds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1]
    description: str
    gene: list[Literal["name", "block", "role", "group"]] = Field(min_length=1)
    groups: dict[str, list[str]] = {}
    step: float | None = Field(default=None, gt=0, le=1)
    weights: _Weights | Literal["by_hidden_size"] | None = None
    share: float | None = Field(default=None, gt=0, le=1)
    pattern: str | None = None
    options: dict[_NofM, _Saving | None] | None = Field(default=None, min_length=1)
    reach: int = Field(ge=1, le=1000)
    budget_per: Literal["role"] | None = None
    bounds: dict[str, tuple[float, float]] = {}

    @property
    def of_levels(self) -> SpaceFile:
        """The space of levels: itself."""
        return self

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Options whose savings must come from a measure."""
        return tuple(p for p, saving in (self.options or {}).items() if saving is None)

    @field_validator("options", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return dict.fromkeys(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if 0 < len(self.unpriced) < len(self.options or {}):
            raise ValueError("either all options need what they save, or none")
        kinds = [self.step, self.weights, self.share, self.pattern, self.options]
        if kinds.count(None) != len(kinds) - 1:
            raise ValueError("a space needs one of step, weights, share, pattern and options")
        if self.options and self.budget_per:
            raise ValueError("options have one budget: leave out budget_per")
        return self

    def build(
        self,
        layout: Layout,
        budget: Budget,
        bounds: RoleBounds,
        prices: Prices | None = None,
        hidden_size: int | None = None,
    ) -> SearchSpace:
        """Return the space over a layout.

        Args:
            layout: The units.
            budget: The global budget; with options or prices its target is a saving.
            bounds: Sparsity limits by role; they override the file's for these roles.
            prices: Savings of the units, counted instead of their weights.
            hidden_size: That of the model, for a step that depends on it.

        Raises:
            UnknownNameError: A bound's role is not in the layout.
            ConfigError: A pattern is not legal, a unit cannot have it, no unit has room for a
                step in weights, or the hidden size is needed.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
        within = bounds_of(layout, {**self.bounds, **bounds})
        build = self._with_weights(budget.target, hidden_size)._build
        if self.budget_per == "role":
            return build_separately(layout, budget, within, prices, self.reach, build)
        return build(layout, budget, within, prices)

    def _with_weights(self, target: float, hidden_size: int | None) -> SpaceFile:
        """Return the file with a number for ``weights`` if these depend on the model."""
        if self.weights != _BY_HIDDEN_SIZE:
            return self
        if hidden_size is None:
            raise ConfigError(f"weights: {_BY_HIDDEN_SIZE} needs the hidden size of the model")
        weights = int(0.5 * min(target, 1 - target) / self.reach * hidden_size**2)
        return self.model_copy(update={"weights": max(1, weights)})

    def _build(
        self, layout: Layout, budget: Budget, within: Bounds, prices: Prices | None
    ) -> SearchSpace:
        """Return the space of units that share one budget."""
        genes = self._genes(layout)
        common = _Common(
            layout=layout, budget=budget, bounds=within, genes=genes, reach=self.reach
        )
        if self.options:
            return PatternLevels(**common, prices=self._option_prices(layout, prices))
        if self.pattern:
            return CountLevels(**common, choices=list_pattern_counts(layout, self.pattern))
        if self.share:
            return ShareLevels(**common, share=self.share, prices=prices)
        uniform = _uniform(layout, budget, within, prices)
        step = self._step(layout, uniform, within, genes)
        if prices is None and layout.divisible:
            space = EvenLevels(**common, step=step)
            if self.weights is not None:
                _check_room(space)
            return space
        return StepLevels(**common, step=step, prices=prices)

    def _option_prices(self, layout: Layout, measured: Prices | None) -> Prices:
        """Return the prices of the options: the file's, or a measure's.

        Raises:
            ConfigError: The measure has no prices of an option.
        """
        savings = {p: s for p, s in (self.options or {}).items() if s is not None}
        if savings:
            return option_prices(layout, savings)
        known = {} if measured is None else measured.patterns
        if missing := [pattern for pattern in self.unpriced if pattern not in known]:
            raise ConfigError(f"there are no prices of the pattern {missing[0]}")
        assert measured is not None
        return replace(measured, patterns={p: known[p] for p in self.unpriced})

    def _genes(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """Return the units of each gene."""
        groups = self._groups(layout) if "group" in self.gene else {}
        genes: dict[tuple[object, ...], list[int]] = {}
        for index, unit in enumerate(layout):
            key = (groups[unit.name] if p == "group" else getattr(unit, p) for p in self.gene)
            genes.setdefault(tuple(key), []).append(index)
        return tuple(map(tuple, genes.values()))

    def _step(self, layout: Layout, removed: np.ndarray, bounds: Bounds, genes: Groups) -> int:
        """Return the step in weights, a whole number of the smallest items."""
        granule = int(layout.costs.min())
        if isinstance(self.weights, int):
            return max(1, round(self.weights / granule)) * granule
        assert self.step is not None

        def most(items: np.ndarray) -> int:
            weights = items * layout.costs
            return max(int(weights[list(gene)].sum()) for gene in genes)

        room = min(most(bounds.upper - removed), most(removed - bounds.lower))
        smallest = min(sum(layout[i].size for i in gene) for gene in genes)
        return max(1, round(min(self.step * smallest, room / 4) / granule)) * granule

    def _groups(self, layout: Layout) -> dict[str, str]:
        """Return the group of each unit, by name.

        A unit whose role is in no group joins the group of the other units in its module. If
        these are in no group or in several, the module is a group of its own, e.g. a Mamba mixer.

        Raises:
            ConfigError: Such a unit is in no module of its block.
        """
        first = reversed(self.groups.items())
        named = {role: group for group, roles in first for role in roles}
        found = {unit.name: named[unit.role] for unit in layout if unit.role in named}
        beside: dict[str, set[str]] = {}
        for name, group in found.items():
            beside.setdefault(name.rpartition(".")[0], set()).add(group)
        for unit in layout:
            if unit.name in found:
                continue
            module = _module(unit)
            if unit.cost > 1:  # structures span the linears that groups name
                found[unit.name] = unit.role
            elif module is None:
                raise ConfigError(f"the space has no group for role {unit.role!r} of {unit.name}")
            else:
                others = beside.get(unit.name.rpartition(".")[0], set())
                found[unit.name] = next(iter(others)) if len(others) == 1 else module
        return found


def _module(unit: Unit) -> str | None:
    """Return the name of a unit's module without numbers; None if it is the block itself."""
    path = unit.name.split(".")[:-1]
    while path and path[-1].isdigit():
        path.pop()
    return path[-1] if any(part.isdigit() for part in path) else None


def _check_room(space: EvenLevels) -> None:
    """Check that some gene can rise by a level, and some fall.

    Raises:
        ConfigError: None can: the step is too large for this model.
    """
    if not (space.limits.upper.any() and space.limits.lower.any()):
        raise ConfigError(
            f"a level of {space.step} weights is too large for this model at sparsity "
            f"{space.budget.target}: choose a space with a smaller step, e.g. evopress_default"
        )


def _uniform(layout: Layout, budget: Budget, bounds: Bounds, prices: Prices | None) -> np.ndarray:
    """Return the counts of the uniform profile, ``(n_units,)`` int64."""
    if prices is not None:
        return share_equally(layout, bounds, budget, prices)
    return np.array(budget.uniform(layout, bounds).removed)


def bounds_of(layout: Layout, bounds: RoleBounds) -> Bounds:
    """Return the bounds of each unit from sparsity limits by role.

    Raises:
        UnknownNameError: A role is not in the layout.
        ConfigError: Limits do not satisfy ``0 <= low <= high <= 1``.
    """
    roles = {unit.role for unit in layout}
    for role, (low, high) in bounds.items():
        if role not in roles:
            raise UnknownNameError(f"no unit has the role {role!r}: {suggest_name(role, roles)}")
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"bounds of {role} must be 0 <= LOW <= HIGH <= 1, not {low}:{high}")
    limits = [bounds.get(unit.role, (0.0, 1.0)) for unit in layout]
    return Bounds.of(layout, *np.array(limits, dtype=np.float64).T)
