"""Which rows of a fused projection are queries, keys and values, or gates and ups.

Architectures order them in many ways: one after the other, by head, by group of heads. No list of
them is needed: two tokens through the model, with the projection's output replaced, tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsity_search.models.anatomy.linears import matrix

#: Role of a fused projection → the role of the layer that reads what is made of it.
READERS = {"qkv": "o", "gate_up": "down"}

#: Attribute of a model: what was found, as the projections of all blocks are alike.
_FOUND = "_sparsity_search_fused"
#: Gradients smaller than the largest by this factor are rounding.
_ROUNDING = 1e-3


class _Read(Exception):
    """Ends the forward pass once the reader's input is known."""


def rows_by_role(
    model: nn.Module, linear: nn.Linear, reader: nn.Linear, role: str
) -> Mapping[str, Tensor]:
    """Return the rows of each role in a fused projection, ``(n,)`` int64 ascending.

    It is found once for all layers of one shape before readers of one shape.

    Args:
        model: The whole model; it is run up to the reader.
        linear: The projection.
        reader: The layer of the same module that reads what is made of it.
        role: A key of `READERS`.

    Returns:
        Rows by role, every row once; nothing if it is not understood, e.g. in linear attention.
    """
    known: dict[Any, Mapping[str, Tensor]] = model.__dict__.setdefault(_FOUND, {})
    key = (role, *(tuple(matrix(layer).shape) for layer in (linear, reader)))
    if key not in known:
        probe = _Probe(model, linear, reader)
        found = _attention(probe) if role == "qkv" else _feed_forward(probe)
        known[key] = {name: mask.nonzero().flatten() for name, mask in found.items()}
    return known[key]


class _Probe:
    """What the reader reads of two tokens, as a function of what the projection writes."""

    def __init__(self, model: nn.Module, linear: nn.Linear, reader: nn.Linear) -> None:
        self._model = model
        self._linear = linear
        self._reader = reader
        self.rows = matrix(linear).shape[0]

    def written(self) -> Tensor:
        """Return small random outputs of the projection, ``(2, rows)``."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(2, self.rows, generator=generator)
        return values.to(self._linear.weight) / 4

    def gradient(self, written: Tensor, token: int) -> Tensor:
        """Return that of the sum of what the reader reads at a token, ``(2, rows)`` float32."""
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = written.clone().requires_grad_(True)
            read = self._read(leaf)
            if read is None or not read.requires_grad:
                return torch.zeros_like(written, dtype=torch.float32)
            (found,) = torch.autograd.grad(read.reshape(2, -1)[token].sum(), leaf)
        return found.float()

    def _read(self, leaf: Tensor) -> Tensor | None:
        seen: list[Tensor] = []

        def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return (leaf * 1).reshape(output.shape)  # no leaf: models may write into it

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])
            raise _Read

        handles = [
            self._linear.register_forward_hook(replace),
            self._reader.register_forward_pre_hook(stop),
        ]
        try:
            device = next(self._model.parameters()).device
            self._model(input_ids=torch.tensor([[0, 1]], device=device), use_cache=False)
        except _Read:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen[0] if seen else None


def _attention(probe: _Probe) -> dict[str, Tensor]:
    """Return masks of queries, keys and values, ``(rows,)`` bool each.

    The first token attends to itself alone, with weight one: what it makes depends on its values
    and on nothing else. What the second makes depends on the first's keys and values.
    """
    written = probe.written()
    values = _nonzero(probe.gradient(written, token=0)[0])
    later = probe.gradient(written, token=1)
    earlier, own = later[0] != 0, later[1] != 0
    keys = earlier & ~values
    understood = own.all() and (earlier | ~values).all() and keys.sum() == values.sum()
    if not understood or not keys.any() or earlier.all():
        return {}
    return {"q": ~earlier, "k": keys, "v": values}


def _feed_forward(probe: _Probe) -> dict[str, Tensor]:
    """Return masks of gates and ups, ``(rows,)`` bool each: they are halves, or alternate.

    What is made is linear in the ups: their gradient does not depend on them.
    """
    order = torch.arange(probe.rows)
    patterns = (order >= probe.rows // 2, order % 2 == 1)
    linear = [up for first in patterns for up in (first, ~first) if _is_linear(probe, up)]
    return {"gate": ~linear[0], "up": linear[0]} if len(linear) == 1 else {}


def _is_linear(probe: _Probe, rows: Tensor) -> bool:
    """Return whether what is made depends on the rows, and is linear in them."""
    written = probe.written()
    rows = rows.to(written.device)
    before = probe.gradient(written, token=0)[0]
    after = probe.gradient(torch.where(rows, 2 * written, written), token=0)[0]
    return bool(before.any()) and torch.equal(before[rows], after[rows])


def _nonzero(gradient: Tensor) -> Tensor:
    return gradient.abs() > _ROUNDING * gradient.abs().max()
