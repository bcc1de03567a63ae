"""The file of a space of parameters."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from sparsity_search.errors import ConfigError
from sparsity_search.registry import describe
from sparsity_search.spaces.level_file import SpaceFile
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.parameters import Parameter, spaced, stepped
from sparsity_search.spaces.parametric import Allocate, ParametricSpace, compose
from sparsity_search.spaces.reading import parse_space, read_space

_Number = StrictInt | FiniteFloat


class ParameterValues(BaseModel):
    """The values of one parameter: a list, or a grid.

    Attributes:
        values: List of all values; they have an order if they are rising numbers.
        low: First value of a grid; replaces ``values``.
        high: Last value of the grid.
        step: Difference of neighbours. If all three are integers, the values are too.
        points: Number of values; replaces ``step``.
        log: Whether neighbours differ by equal factors, not equal differences; needs ``points``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: list[StrictBool | _Number | StrictStr | None] | None = Field(None, min_length=1)
    low: _Number | None = None
    high: _Number | None = None
    step: _Number | None = None
    points: int | None = None
    log: bool = False

    def build(self, name: str) -> Parameter:
        """Return the parameter called ``name``.

        Raises:
            ConfigError: There is neither a list nor a grid, or both, or it is not legal.
        """
        given = self.model_fields_set
        if self.values is not None and given == {"values"}:
            return Parameter(name, tuple(self.values))
        if self.low is not None and self.high is not None and "values" not in given:
            if self.step is not None and given == {"low", "high", "step"}:
                return stepped(name, self.low, self.high, self.step)
            if self.points is not None and "step" not in given:
                return spaced(name, self.low, self.high, self.points, log=self.log)
        raise ConfigError(
            f"{name} needs values, or low, high and step, or low, high and points "
            f"(with log, if you like), not {', '.join(sorted(given)) or 'nothing'}"
        )


class ParametricFile(BaseModel):
    """The contents of the file of a space of parameters.

    Attributes:
        version: Version of this format.
        description: One line for `sparsity-search ls spaces`.
        allocator: Name of the allocator that turns parameters into a profile.
        parameters: Settings of it that are searched; dots lead to entries, ``knots.0``.
        settings: Further settings, equal for all candidates.
        space: Name or path of the space of levels that profiles are rounded to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    description: str
    allocator: str
    parameters: dict[str, ParameterValues] = Field(min_length=1)
    settings: dict[str, Any] = {}
    space: str = "per_linear"

    @model_validator(mode="after")
    def _legal(self) -> Self:
        for name in self.parameters:
            if name.partition(".")[0] == "pruner":
                raise ValueError(
                    f"{name!r} cannot be a parameter: a supernet is built with one pruner, and "
                    "each setting of it would need a supernet of its own"
                )
        compose(self.settings, {p.name: p.values[0] for p in self.build_parameters()})
        return self

    @cached_property
    def of_levels(self) -> SpaceFile:
        """The file of the space of levels that profiles are rounded to; it is read once.

        Raises:
            UnknownNameError: There is no space of that name.
            ConfigError: It is itself a space of parameters, or not legal.
        """
        value = read_space(self.space)
        if has_parameters(value):
            raise ConfigError(f"space {self.space!r} is one of parameters; name one of levels")
        return parse_space(SpaceFile, self.space, value)

    def build_parameters(self) -> tuple[Parameter, ...]:
        """Return the parameters in the order of the file.

        Raises:
            ConfigError: The values of a parameter are neither a list nor a grid.
        """
        return tuple(values.build(name) for name, values in self.parameters.items())

    def build(
        self, of_levels: SearchSpace, allocate: Allocate, defaults: object
    ) -> ParametricSpace:
        """Return the space of parameters over one of levels.

        Args:
            of_levels: The space of levels, built from `of_levels`.
            allocate: Function from the allocator's settings to a profile, see `ParametricSpace`.
            defaults: The allocator without the parameters; a study starts from it.
        """
        return ParametricSpace(
            parameters=self.build_parameters(),
            allocate=allocate,
            of_levels=of_levels,
            settings=self.settings,
            defaults=defaults,
            method=f"{self.allocator}: {describe(defaults)}",
        )


def has_parameters(value: Any) -> bool:
    """Whether a space file has parameters, that is, names an allocator."""
    return isinstance(value, dict) and "allocator" in value
