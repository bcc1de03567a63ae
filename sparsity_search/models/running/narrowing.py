"""Runs of a model without its zero structures: smaller matrix products, equal outputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import gcd

import torch
from torch import Tensor, nn

from sparsity_search.evidence.structures import select_fullest
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream
from sparsity_search.profiles.layout import Unit

#: Number of tokens on which units are tested.
_TRIED = 8
#: Largest relative error from rounding; bfloat16 makes less than half of it.
_ROUNDING = 1e-2
#: Widths are rounded up to a multiple of this, with empty structures.
_MULTIPLE = 8

#: A layer, and the replacements of some of its parameters.
Narrowed = tuple[nn.Linear, dict[str, nn.Parameter]]


class LayerNarrower:
    """A model that runs without its zero structures.

    Each unit is tested once, because a model's code may depend on a size. A unit that fails the
    test keeps its zeros and its full size, and so do all units of offloaded models.

    Args:
        subject: The model.
        dense: Its dense weights by unit, for the tests.
    """

    def __init__(self, subject: PrunableModel, dense: Mapping[str, Tensor]) -> None:
        self._subject = subject
        self._dense = dense
        self._cache: dict[str, tuple[Hashable, list[Narrowed]]] = {}

    @contextmanager
    def at(self, states: Mapping[str, Hashable]) -> Iterator[None]:
        """Leave zero structures out inside, and restore the parameters afterwards.

        Args:
            states: State of each unit to narrow, by name; equal states mean equal weights.
        """
        units = [self._unit(name, state) for name, state in states.items() if name in self._able]
        with _replace_parameters([layer for layers in units for layer in layers]):
            yield

    def _unit(self, name: str, state: Hashable) -> list[Narrowed]:
        """Return the narrowed layers of a unit, from the cache if its state is the same."""
        if name not in self._cache or self._cache[name][0] != state:
            self._cache[name] = state, _narrow(self._able[name])
        return self._cache[name][1]

    @cached_property
    def _able(self) -> dict[str, StructuredView]:
        """Units whose structures can be left out."""
        views = self._subject.views
        several = [
            (unit, view)
            for unit in self._subject.layout
            if isinstance(view := views[unit.name], StructuredView)
            if view.alone and unit.count > 1
        ]
        if self._subject.offload is not None or not several:
            return {}
        runner = BlockRunner(self._subject, torch.arange(_TRIED)[None])
        hidden = runner.embed()
        return {u.name: view for u, view in several if self._works(u, view, runner, hidden)}

    def _works(
        self, unit: Unit, view: StructuredView, runner: BlockRunner, hidden: Sequence[Stream]
    ) -> bool:
        """Return whether leaving out half of the unit has the same effect as zeros in that half.

        The first half is left out, so that all remaining structures change their place.
        """
        present, halved = view.read(), self._dense[unit.name].clone()
        view.structures.bodies(halved)[:, : unit.count // 2] = 0
        view.write(halved)
        try:
            expected = _run_consumer(view, unit.block, runner, hidden)
            with _replace_parameters(_narrow(view)):
                actual = _run_consumer(view, unit.block, runner, hidden)
            error = torch.linalg.vector_norm(actual - expected)
            return bool(error <= _ROUNDING * torch.linalg.vector_norm(expected))
        except Exception:  # arbitrary model code may raise any exception
            return False
        finally:
            view.write(present)


def _narrow(view: StructuredView) -> list[Narrowed]:
    """Return the layers of a unit without the structures that the consumers do not read."""
    unread, shape = view.unread(), view.structures
    step = _MULTIPLE // gcd(_MULTIPLE, shape.inner)
    most = max(1, int((~unread).sum()))  # some models do not run without any
    kept = select_fullest(unread, min(-(-most // step) * step, shape.count))
    if len(kept) == shape.count:
        return []
    layers = [(part.linear, part.narrowed(kept)) for part in view.parts]
    return [
        (linear, {name: nn.Parameter(t, requires_grad=False) for name, t in tensors.items()})
        for linear, tensors in layers
    ]


@contextmanager
def _replace_parameters(layers: Sequence[Narrowed]) -> Iterator[None]:
    originals = [(layer, {name: layer._parameters[name] for name in new}) for layer, new in layers]
    try:
        for layer, new in layers:
            layer._parameters.update(new)
        yield
    finally:
        for layer, before in originals:
            layer._parameters.update(before)


def _run_consumer(
    view: StructuredView, block: int, runner: BlockRunner, hidden: Sequence[Stream]
) -> Tensor:
    """Run a block and return the outputs of a unit's consumer, in float32."""
    seen: list[Tensor] = []
    handle = view.module.register_forward_hook(lambda *called: seen.append(called[2]))
    try:
        runner.run(block, hidden)
    finally:
        handle.remove()
    return seen[0].float()
