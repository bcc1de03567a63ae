"""A model as a set of prunable units: decoder blocks, units, and views of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, ModelError, ProfileError, suggest_name
from sparsity_search.models.anatomy.blocks import find_blocks
from sparsity_search.models.anatomy.linears import find_linears
from sparsity_search.models.anatomy.roles import check_patterns
from sparsity_search.models.anatomy.shared import find_owners
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import WeightView
from sparsity_search.models.io.offload import get_offload
from sparsity_search.models.running.flow import BlockFlow, trace_flow
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.registry import UNITS
from sparsity_search.utils.expressions import Expression

if TYPE_CHECKING:
    from sparsity_search.models.running.statistics_cache import StatisticsCache


class PrunableModel:
    """A causal language model with its prunable units.

    Weights that several blocks share are units of one block, see `find_owners`.

    Args:
        model: A decoder model of transformers.
        exclude: Regular expression; units whose name matches are not pruned.
        units: Kind of units: single ``weights``, or structures; see `models/units/`.
        blocks: Regular expression for the decoder blocks, see `find_blocks`.
        kept: Cache in which walks store statistics of the dense model; None for no cache.
        roles: Roles of linear layers by regular expression on the name within the block; they
            precede the roles that names have, see `infer_roles`.
        saved_as: Number type in which pruned weights are saved; None for that of the model.

    Raises:
        ModelError: There are no decoder blocks, or they hold nothing prunable.
        UnknownNameError: There is no such kind of units.
        ConfigError: ``exclude`` or ``blocks`` is not a regular expression, ``exclude`` matches
            every unit or none, or ``roles`` are not legal, see `check_patterns`.
    """

    def __init__(
        self,
        model: nn.Module,
        exclude: str | None = None,
        units: str = "weights",
        blocks: str | None = None,
        kept: StatisticsCache | None = None,
        roles: Mapping[str, str] | None = None,
        saved_as: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.saved_as = saved_as
        self.kept = kept
        self.units = units
        self.exclude = exclude
        self.roles = dict(roles or {})
        self.prefix, self.blocks = find_blocks(model, blocks)
        if self.roles:
            names = (name for block in self.blocks for name in find_linears(block))
            check_patterns(self.roles, names)
        self.offload = get_offload(model)
        self.views: dict[str, WeightView] = {}
        self.excluded: dict[str, WeightView] = {}
        pattern = Expression(exclude, "--exclude") if exclude else None
        layout: list[Unit] = []
        kind = UNITS.create(units)
        for index, unit in self._find_units(kind):
            if pattern and pattern.finds(unit.name):
                self.excluded[unit.name] = unit.view
                continue
            self.views[unit.name] = unit.view
            count, cost = unit.view.size
            zeros = unit.view.n_zeros()
            layout.append(
                Unit(
                    name=unit.name,
                    block=index,
                    role=unit.role,
                    count=count,
                    cost=cost,
                    zeros=zeros,
                )
            )
            self.release()
        if not layout:
            raise self._nothing()
        if pattern and not self.excluded:
            parts = {part for name in self.views for part in name.split(".") if not part.isdigit()}
            raise ConfigError(
                f"--exclude {exclude!r} matches none of the {len(layout)} units, such as "
                f"{layout[0].name}: {suggest_name(pattern.text, parts)}"
            )
        kind.check(model, [*self.views.values(), *self.excluded.values()])
        self.layout = Layout(layout)

    @cached_property
    def flow(self) -> BlockFlow:
        """What the model passes from block to block, traced when it is needed first.

        Raises:
            ModelError: The blocks cannot be run one by one, see `trace_flow`.
        """
        return trace_flow(self.model, self.blocks)

    def _nothing(self) -> ConfigError | ModelError:
        """Return the error for a model without prunable units."""
        if self.excluded:
            return ConfigError(
                f"--exclude {self.exclude!r} matches all {len(self.excluded)} units, such as "
                f"{next(iter(self.excluded))}: nothing is left to prune"
            )
        return ModelError(
            f"no prunable {self.units} in the {len(self.blocks)} blocks {self.prefix}: choose "
            "other blocks with --blocks REGEX, or other units with --units"
        )

    def linear_roles(self) -> dict[nn.Linear, str]:
        """Return the role of each linear layer in the blocks."""
        return {
            block.linears[name]: role
            for block in self._describe_blocks()
            for name, role in block.roles.items()
        }

    def _describe_blocks(self) -> Iterator[DecoderBlock]:
        config = self.model.config.get_text_config()  # type: ignore[operator, union-attr]
        for index, block in enumerate(self.blocks):
            yield DecoderBlock(f"{self.prefix}.{index}", block, config, self.model, self.roles)

    def _find_units(self, kind: UnitKind) -> Iterator[tuple[int, FoundUnit]]:
        owners = find_owners(self.model, self.blocks)
        for index, block in enumerate(self._describe_blocks()):
            for unit in kind.find(block):
                if all(owners.get(id(p), index) == index for p in unit.view.parameters()):
                    yield index, unit

    def units_of(self, block: int) -> list[Unit]:
        """Return the units of one decoder block, in forward order."""
        return [unit for unit in self.layout if unit.block == block]

    def parameters(self) -> list[Tensor]:
        """Return the parameters that hold the units' weights, each once."""
        parameters = [p for view in self.views.values() for p in view.parameters()]
        return list({id(parameter): parameter for parameter in parameters}.values())

    def zeros(self) -> SparsityProfile:
        """Return the profile of the current weights, with the zeros counted in every unit."""
        return from_counts(self.layout, [view.n_zeros() for _, view in self.one_by_one()])

    def verify(self, profile: SparsityProfile) -> None:
        """Check that every unit has exactly the zeros of ``profile``, in its patterns.

        Raises:
            ProfileError: A unit differs; the message names the first one.
        """
        for unit, (expected, pattern), actual in zip(
            self.layout, profile.states, self.zeros().removed, strict=True
        ):
            if expected != actual:
                raise ProfileError(
                    f"{unit.name} has {actual} zeros of {unit.count}, the profile says {expected}"
                )
            if pattern and not is_grouped(self.views[unit.name].read(), pattern):
                raise ProfileError(f"{unit.name} does not have the profile's pattern {pattern}")

    def snapshot(self) -> Mapping[str, Tensor]:
        """Return copies of the units' current weights, by name."""
        pairs = ((name, view.read()) for name, view in self.one_by_one())
        if self.offload is not None:
            return self.offload.copied(pairs)
        return {name: weight.clone() for name, weight in pairs}

    def present(self, block: int) -> AbstractContextManager[None]:
        """Keep a block on its device inside, to read and write its weights there."""
        return nullcontext() if self.offload is None else self.offload.present(block)

    def check_not_offloaded(self) -> None:
        """Check that the model is in memory, which backward passes need.

        Raises:
            ConfigError: The model is offloaded.
        """
        if self.offload is not None:
            raise ConfigError(
                "gradients need the whole model in memory: leave out --offload, or choose a "
                "method without gradients"
            )

    def release(self) -> None:
        """Drop weights that rest in a file from memory."""
        if self.offload is not None:
            self.offload.release()

    def one_by_one(self) -> Iterator[tuple[str, WeightView]]:
        """Yield the name and view of each unit; an offloaded model loads one unit at a time."""
        for name, view in self.views.items():
            yield name, view
            self.release()

    @contextmanager
    def preserved(self) -> Iterator[Mapping[str, Tensor]]:
        """Restore the units' current weights afterwards, also after an error.

        Yields:
            Copies of the weights by unit name.
        """
        dense = self.snapshot()
        try:
            yield dense
        finally:
            if self.offload is not None:
                self.offload.rest()
            for name, view in self.one_by_one():
                view.write(dense[name])


def is_grouped(weight: Tensor, pattern: str) -> bool:
    """Whether every M consecutive inputs of ``(rows, columns)`` keep exactly N weights."""
    groups = Pattern.parse_groups(pattern)
    if groups is None or groups.keep is None or not groups.fits(weight.shape[1]):
        return False
    kept = (weight != 0).reshape(len(weight), -1, groups.group).sum(dim=-1)
    return bool((kept == groups.keep).all())
