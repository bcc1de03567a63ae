"""Running a model without the structures that are zero in it: smaller products, equal outputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import gcd

import torch
from torch import Tensor, nn

from sparsity_search.evidence.structures import fullest
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.layout import Unit

#: Tokens on which units are tried out.
_TRIED = 8
#: Greatest relative error that is rounding: bfloat16 makes less than half of it.
_ROUNDING = 1e-2
#: Widths are rounded up to a multiple of this with empty structures.
_MULTIPLE = 8

#: A layer, and what takes the place of some of its parameters.
Narrowed = tuple[nn.Linear, dict[str, nn.Parameter]]


class Narrow:
    """Leaves structures that are zero in a model out of its matrix products.

    A unit keeps its zeros, and its full size, where leaving them out is not known to be right:
    each is tried out once, because a model's code may depend on a size. Models that are offloaded
    keep all.

    Args:
        subject: The model.
        dense: Its dense weights by unit, to try with.
    """

    def __init__(self, subject: PrunableModel, dense: Mapping[str, Tensor]) -> None:
        self._subject = subject
        self._dense = dense
        self._known: dict[str, tuple[Hashable, list[Narrowed]]] = {}

    @contextmanager
    def at(self, states: Mapping[str, Hashable]) -> Iterator[None]:
        """Leave zeros out inside; the parameters of before are back afterwards.

        Args:
            states: Of units by name; equal ones mean equal weights. Others keep their size.
        """
        units = [self._unit(name, state) for name, state in states.items() if name in self._able]
        with _replaced([layer for layers in units for layer in layers]):
            yield

    def _unit(self, name: str, state: Hashable) -> list[Narrowed]:
        """Return the layers of a unit, made anew if its state is."""
        if name not in self._known or self._known[name][0] != state:
            self._known[name] = state, _narrowed(self._able[name])
        return self._known[name][1]

    @cached_property
    def _able(self) -> dict[str, StructuredView]:
        """The units from which structures can be left out."""
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
        self, unit: Unit, view: StructuredView, runner: BlockRunner, hidden: Sequence[Tensor]
    ) -> bool:
        """Return whether the unit writes the same with half of it left out as with zeros.

        It is the first half, so that all that is left is elsewhere than before.
        """
        present, halved = view.read(), self._dense[unit.name].clone()
        view.structures.bodies(halved)[:, : unit.count // 2] = 0
        view.write(halved)
        try:
            expected = _written(view, unit.block, runner, hidden)
            with _replaced(_narrowed(view)):
                found = _written(view, unit.block, runner, hidden)
            error = torch.linalg.vector_norm(found - expected)
            return bool(error <= _ROUNDING * torch.linalg.vector_norm(expected))
        except Exception:  # the model's code may fail anyhow at a size that it does not expect
            return False
        finally:
            view.write(present)


def _narrowed(view: StructuredView) -> list[Narrowed]:
    """Return the layers of a unit without the structures that nothing reads."""
    unread, shape = view.unread(), view.structures
    step = _MULTIPLE // gcd(_MULTIPLE, shape.inner)
    most = max(1, int((~unread).sum()))  # not every model runs with none
    kept = fullest(unread, min(-(-most // step) * step, shape.count))
    if len(kept) == shape.count:
        return []
    made = [(part.linear, part.narrowed(kept)) for part in view.parts]
    return [
        (linear, {name: nn.Parameter(t, requires_grad=False) for name, t in tensors.items()})
        for linear, tensors in made
    ]


@contextmanager
def _replaced(layers: Sequence[Narrowed]) -> Iterator[None]:
    own = [(layer, {name: layer._parameters[name] for name in new}) for layer, new in layers]
    try:
        for layer, new in layers:
            layer._parameters.update(new)
        yield
    finally:
        for layer, before in own:
            layer._parameters.update(before)


def _written(
    view: StructuredView, block: int, runner: BlockRunner, hidden: Sequence[Tensor]
) -> Tensor:
    """Return what a unit's consumer writes when its block runs, in float32."""
    seen: list[Tensor] = []
    handle = view.module.register_forward_hook(lambda *called: seen.append(called[2]))
    try:
        runner.run(block, hidden)
    finally:
        handle.remove()
    return seen[0].float()
