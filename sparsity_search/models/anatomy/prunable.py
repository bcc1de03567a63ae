"""A model seen as what can be pruned in it: decoder blocks, units, and views of their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparsity_search.errors import ConfigError, ModelError, ProfileError
from sparsity_search.models.anatomy.blocks import find_blocks
from sparsity_search.models.anatomy.linears import named_linears
from sparsity_search.models.anatomy.roles import check_patterns
from sparsity_search.models.anatomy.unit_kind import Block, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import View
from sparsity_search.models.io.offload import offload_of
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.patterns import Groups
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.registry import UNITS

if TYPE_CHECKING:
    from sparsity_search.models.running.kept import KeptStatistics


class PrunableModel:
    """A causal language model with its prunable units.

    Args:
        model: A decoder model of transformers.
        exclude: Units whose name matches this regular expression are left alone.
        units: What is removed: single ``weights``, or structures; see `models/units/`.
        blocks: Names the decoder blocks, see `find_blocks`.
        kept: Where walks find and leave statistics of the dense model; by default nowhere.
        roles: Roles of linear layers by regular expression on the name within the block; they go
            before the roles that names have, see `roles_of`.

    Raises:
        ModelError: No decoder blocks, or nothing prunable in them.
        UnknownNameError: There is no such kind of units.
        ConfigError: ``exclude`` or ``blocks`` is no regular expression, ``exclude`` matches
            every unit, or ``roles`` are not legal, see `check_patterns`.
    """

    def __init__(
        self,
        model: nn.Module,
        exclude: str | None = None,
        units: str = "weights",
        blocks: str | None = None,
        kept: KeptStatistics | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.kept = kept
        self.units = units
        self.exclude = exclude
        self.roles = dict(roles or {})
        self.prefix, self.blocks = find_blocks(model, blocks)
        if self.roles:
            names = (name for block in self.blocks for name in named_linears(block))
            check_patterns(self.roles, names)
        self.offload = offload_of(model)
        self.views: dict[str, View] = {}
        self.excluded: dict[str, View] = {}
        excluded, found = _pattern(exclude), []
        for index, unit in self._find_units(UNITS.create(units)):
            if excluded and excluded.search(unit.name):
                self.excluded[unit.name] = unit.view
                continue
            self.views[unit.name] = unit.view
            count, cost = unit.view.size
            zeros = unit.view.n_zeros()
            found.append(
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
        if not found:
            raise self._nothing()
        self.layout = Layout(found)

    def _nothing(self) -> ConfigError | ModelError:
        """Return the error that there is nothing to prune."""
        if self.excluded:
            return ConfigError(
                f"--exclude {self.exclude!r} matches all {len(self.excluded)} units, such as "
                f"{next(iter(self.excluded))}: nothing is left to prune"
            )
        return ModelError(
            f"no prunable {self.units} in the {len(self.blocks)} blocks {self.prefix}: choose "
            "other blocks with --blocks REGEX, or something else with --units"
        )

    def linear_roles(self) -> dict[nn.Linear, str]:
        """Return the role of each linear layer in the blocks."""
        return {
            block.linears[name]: role
            for block in self._describe_blocks()
            for name, role in block.roles.items()
        }

    def _describe_blocks(self) -> Iterator[Block]:
        config = self.model.config.get_text_config()  # type: ignore[operator, union-attr]
        for index, block in enumerate(self.blocks):
            yield Block(f"{self.prefix}.{index}", block, config, self.model, self.roles)

    def _find_units(self, kind: UnitKind) -> Iterator[tuple[int, FoundUnit]]:
        for index, block in enumerate(self._describe_blocks()):
            for unit in kind.find(block):
                yield index, unit

    def units_of(self, block: int) -> list[Unit]:
        """Return the units of one decoder block, in forward order."""
        return [unit for unit in self.layout if unit.block == block]

    def parameters(self) -> list[Tensor]:
        """Return the parameters that hold the units' weights, each once."""
        found = [p for view in self.views.values() for p in view.parameters()]
        return list({id(parameter): parameter for parameter in found}.values())

    def zeros(self) -> SparsityProfile:
        """Return the profile that the weights have now: zeros counted in every unit."""
        return from_counts(self.layout, [view.n_zeros() for _, view in self.one_by_one()])

    def verify(self, profile: SparsityProfile) -> None:
        """Check that the weights' zeros are exactly those of ``profile``, and in its patterns.

        Raises:
            ProfileError: They are not; the message names the first unit that differs.
        """
        for unit, (wanted, pattern), found in zip(
            self.layout, profile.states, self.zeros().removed, strict=True
        ):
            if wanted != found:
                raise ProfileError(
                    f"{unit.name} has {found} zeros of {unit.count}, the profile says {wanted}"
                )
            if pattern and not _is_grouped(self.views[unit.name].read(), pattern):
                raise ProfileError(f"{unit.name} is not {pattern}, as the profile says")

    def snapshot(self) -> Mapping[str, Tensor]:
        """Return copies of the units' weights as they are now, by name."""
        pairs = ((name, view.read()) for name, view in self.one_by_one())
        if self.offload is not None:
            return self.offload.copied(pairs)
        return {name: weight.clone() for name, weight in pairs}

    def present(self, block: int) -> AbstractContextManager[None]:
        """Keep a block where it runs, to read and write its weights there."""
        return nullcontext() if self.offload is None else self.offload.present(block)

    def check_not_offloaded(self) -> None:
        """Check that all blocks stay where they run, as backward passes need them.

        Raises:
            ConfigError: The model is offloaded.
        """
        if self.offload is not None:
            raise ConfigError(
                "gradients need the whole model at once: leave out --offload, or the method that "
                "takes them"
            )

    def release(self) -> None:
        """Take weights that rest in a file out of memory."""
        if self.offload is not None:
            self.offload.release()

    def one_by_one(self) -> Iterator[tuple[str, View]]:
        """Yield name and view of each unit; of an offloaded model, only that one is in memory."""
        for name, view in self.views.items():
            yield name, view
            self.release()

    @contextmanager
    def preserved(self) -> Iterator[Mapping[str, Tensor]]:
        """Keep the units' weights as they are now, and put them back afterwards, whatever happens.

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


def _is_grouped(weight: Tensor, pattern: str) -> bool:
    """Whether every M consecutive inputs of ``(rows, columns)`` keep exactly N weights."""
    groups = Groups.parse(pattern)
    if groups is None or groups.keep is None or not groups.fits(weight.shape[1]):
        return False
    kept = (weight != 0).reshape(len(weight), -1, groups.size).sum(dim=-1)
    return bool((kept == groups.keep).all())


def _pattern(exclude: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(exclude) if exclude else None
    except re.error as error:
        raise ConfigError(f"--exclude {exclude!r} is no regular expression: {error}") from error
