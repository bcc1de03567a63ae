"""Search spaces of few parameters: an allocator's settings in place of a level for each gene.

A candidate is still a tuple of integers, here one index into the values of each parameter, so that
histories, ladders, stores and searchers need not know the difference. The profile of a candidate
is the allocator's result for its settings, rounded to a space of levels, so that a supernet
holds it. This module has numbers and names only; the caller passes the allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, NumericalError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import Candidate, LevelLimits, SearchSpace, as_candidate
from sparsity_search.spaces.parameters import Parameter, Value
from sparsity_search.utils.files import compute_digest

#: Makes a profile of an allocator's settings.
Allocate = Callable[[Mapping[str, Any]], SparsityProfile]


class RefusedSettingError(ConfigError):
    """A setting without a profile; other settings of the space may be legal."""


@dataclass(frozen=True, eq=False)
class ParametricSpace:
    """A space of an allocator's settings, each with few values, over a space of levels.

    Args:
        parameters: The settings that are searched, at least one.
        allocate: Function from settings to a profile, called once for each candidate. It raises
            `ConfigError`, `InfeasibleBudgetError` or `NumericalError` if there is no profile.
        of_levels: The space of levels to which profiles are rounded.
        settings: Further settings, equal for all candidates.
        defaults: The allocator with its default settings; `origin` is nearest to them.
        method: Identifier of the allocator and all its settings, part of the digest.

    Raises:
        ConfigError: There is no parameter, two share a name, or one is an entry of another.
    """

    parameters: tuple[Parameter, ...]
    allocate: Allocate
    of_levels: SearchSpace
    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: object = None
    method: str = ""
    _profiles: dict[Candidate, SparsityProfile] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.parameters or len(set(self.roles)) < len(self.parameters):
            raise ConfigError("a space of parameters needs at least one, and distinct names")
        compose(self.settings, {p.name: p.values[0] for p in self.parameters})

    @property
    def layout(self) -> Layout:
        """The units of its profiles."""
        return self.of_levels.layout

    @property
    def n_genes(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    @property
    def roles(self) -> tuple[str, ...]:
        """Name of each parameter."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def limits(self) -> LevelLimits:
        """Least and greatest index of each parameter."""
        sizes = np.array([len(p.values) for p in self.parameters], dtype=np.int64)
        return LevelLimits(lower=np.zeros_like(sizes), upper=sizes - 1)

    @property
    def hints(self) -> tuple[Hint, ...]:
        """The hints: none, since sensitivities predict losses of levels, not of settings."""
        return ()

    @property
    def unordered(self) -> frozenset[int]:
        """Indices of the parameters whose values have no order."""
        return frozenset(i for i, p in enumerate(self.parameters) if not p.ordered)

    @cached_property
    def origin(self) -> Candidate:
        """The values nearest to the allocator's defaults, or to 0 where it has none.

        A study starts here. Its profile is uniform only if that of the defaults is.
        """
        return tuple(p.nearest(get_value(self.defaults, p.name)) for p in self.parameters)

    @cached_property
    def digest(self) -> str:
        """Identifier of the space, 16 hexadecimal digits."""
        return compute_digest(
            {
                "on": self.of_levels.digest,
                "method": self.method,
                "settings": repr(self.settings),
                "parameters": [[p.name, list(p.values)] for p in self.parameters],
            }
        )

    def __contains__(self, candidate: object) -> bool:
        if not isinstance(candidate, tuple) or len(candidate) != self.n_genes:
            return False
        pairs = zip(candidate, self.parameters, strict=True)
        return all(0 <= index < len(parameter.values) for index, parameter in pairs)

    def values(self, candidate: Candidate) -> dict[str, Value]:
        """Return the value of each parameter by name.

        Raises:
            ConfigError: The candidate is not in the space.
        """
        if candidate not in self:
            raise ConfigError("the candidate is not in this search space")
        return {p.name: p.values[i] for p, i in zip(self.parameters, candidate, strict=True)}

    def profile(self, candidate: Candidate) -> SparsityProfile:
        """Return the profile of a candidate, rounded to the space of levels.

        Raises:
            ConfigError: The candidate is not in the space.
            RefusedSettingError: The allocator refuses the settings.
        """
        values = self.values(candidate)
        if candidate not in self._profiles:
            try:
                found = self.allocate(compose(self.settings, values))
            except (ConfigError, InfeasibleBudgetError, NumericalError) as error:
                raise RefusedSettingError(f"no profile with {values}: {error}") from error
            self._profiles[candidate] = self.of_levels.profile(self.of_levels.nearest(found))
        return self._profiles[candidate]

    def starts(self, profiles: Sequence[SparsityProfile]) -> tuple[Candidate, ...]:
        """Return no candidates: the settings that would give a profile are not known."""
        del profiles
        return ()

    def real_levels(self, profiles: Sequence[SparsityProfile]) -> np.ndarray:
        """Raise an error, since parameters have no levels.

        Raises:
            ConfigError: Always.
        """
        del profiles
        raise ConfigError("a data set needs a space whose genes are units, e.g. per_linear")

    def random_range(self, spread: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last index of each parameter, ``(n_genes,)`` each."""
        del spread
        return self.limits.lower, self.limits.upper

    def with_hints(self, hints: Sequence[Hint]) -> Self:
        """Return the space itself: hints apply to levels only."""
        del hints
        return self

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real indices, ``(n_genes,)``."""
        wanted = np.rint(np.asarray(levels, dtype=np.float64))
        return as_candidate(np.clip(wanted, self.limits.lower, self.limits.upper))

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> Candidate:
        """Return a random candidate; all values are equally likely, ``spread`` is ignored."""
        del spread  # a deviation of levels around the uniform profile
        return as_candidate(rng.integers(self.limits.lower, self.limits.upper + 1))

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Move one of ``genes``, drawn at random, by ``stride`` values up or down.

        No other gene moves, since all profiles meet the budget. If the values have no order, the
        new value is any other one.

        Returns:
            The new candidate, or None if none of ``genes`` can move.
        """
        moves = {gene: found for gene in genes if (found := self._moves(candidate, gene, stride))}
        if not moves:
            return None
        gene = list(moves)[int(rng.integers(len(moves)))]
        index = moves[gene][int(rng.integers(len(moves[gene])))]
        return (*candidate[:gene], index, *candidate[gene + 1 :])

    def _moves(self, candidate: Candidate, gene: int, stride: int) -> list[int]:
        """Return the indices that a move of one parameter can lead to."""
        index, size = candidate[gene], len(self.parameters[gene].values)
        if gene in self.unordered:
            return [i for i in range(size) if i != index]
        return [i for i in (index - stride, index + stride) if 0 <= i < size]


def compose(settings: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """Return settings with values inserted by their dotted names.

    Entries that are numbered from 0 on become a tuple, others a mapping.

    Raises:
        ConfigError: A name leads into a value without entries, or numbers are missing.

    >>> compose({"knots": [0, 0, 0]}, {"knots.1": 0.5, "offsets.q": 0.1})
    {'knots': (0, 0.5, 0), 'offsets': {'q': 0.1}}
    """
    nested = {key: _open_lists(value) for key, value in settings.items()}
    for name, value in values.items():
        *path, last = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"parameter {name!r}: {part!r} is a value, it has no entries")
        if isinstance(inner.get(last), dict):
            raise ConfigError(f"parameter {name!r}: entries of it are parameters or settings")
        inner[last] = value
    return {key: _close_lists(key, value) for key, value in nested.items()}


def get_value(settings: object, name: str) -> object:
    """Return the value of a dotted name in an allocator's settings; None if there is none.

    >>> get_value({"knots": (0.0, 0.5), "offsets": (("q", 0.1),)}, "offsets.q")
    0.1
    """
    found = settings
    for part in name.split("."):
        if isinstance(found, tuple | list):
            pairs = all(isinstance(entry, tuple) and len(entry) == 2 for entry in found)
            found = dict(found) if pairs else {str(i): entry for i, entry in enumerate(found)}
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    return found


def _open_lists(value: Any) -> Any:
    """Return a copy of a setting in which lists are mappings from their indices."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value)) or ()
    return (
        {str(k): _open_lists(v) for k, v in value.items()} if isinstance(value, Mapping) else value
    )


def _close_lists(name: str, value: Any) -> Any:
    """Return a setting in which numbered mappings are tuples again."""
    if not isinstance(value, dict):
        return value
    inner = {key: _close_lists(f"{name}.{key}", entry) for key, entry in value.items()}
    if not inner or not all(key.isdecimal() for key in inner):
        return inner
    numbers = [str(i) for i in range(len(inner))]
    if set(inner) != set(numbers):
        raise ConfigError(f"{name} needs entries numbered from 0 on, not {', '.join(inner)}")
    return tuple(inner[key] for key in numbers)
