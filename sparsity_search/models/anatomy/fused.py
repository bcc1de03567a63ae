"""Rows of a fused projection by role: queries, keys and values, or gates and ups.

Architectures order them in many ways: one after the other, by head, by group of heads. A list of
architectures is not needed: a forward pass of two tokens, with the output of the projection
replaced, reveals the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsity_search.models.anatomy.linears import read_matrix

#: Role of a fused projection → role of the layer that reads the result computed from it.
READERS = {"qkv": "o", "gate_up": "down"}

#: Attribute of a model: rows by role, which are equal for the projections of all blocks.
_CACHE = "_sparsity_search_fused"
#: Gradients below this share of the largest one are rounding errors.
_ROUNDING = 1e-3


class _Read(Exception):
    """Ends the forward pass once the reader's input is known."""


def find_rows_by_role(
    model: nn.Module, linear: nn.Linear, reader: nn.Linear, role: str
) -> Mapping[str, Tensor]:
    """Return the rows of each role in a fused projection, ``(n,)`` int64 ascending.

    The rows are determined once for all projections of equal shape with readers of equal shape.

    Args:
        model: The whole model; it is run up to the reader.
        linear: The projection.
        reader: The layer of the same module that reads the result computed from the projection.
        role: A key of `READERS`.

    Returns:
        Rows by role, every row once; empty if the order is not recognised, e.g. in linear
        attention.
    """
    cache: dict[Any, Mapping[str, Tensor]] = model.__dict__.setdefault(_CACHE, {})
    key = (role, *(tuple(read_matrix(layer).shape) for layer in (linear, reader)))
    if key not in cache:
        probe = _Probe(model, linear, reader)
        masks = _find_attention_rows(probe) if role == "qkv" else _find_feed_forward_rows(probe)
        cache[key] = {name: mask.nonzero().flatten() for name, mask in masks.items()}
    return cache[key]


class _Probe:
    """Inputs of the reader for two tokens, as a function of the projection's outputs."""

    def __init__(self, model: nn.Module, linear: nn.Linear, reader: nn.Linear) -> None:
        self._model = model
        self._linear = linear
        self._reader = reader
        self.rows = read_matrix(linear).shape[0]

    def written(self) -> Tensor:
        """Return small random outputs of the projection, ``(2, rows)``."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(2, self.rows, generator=generator)
        return values.to(self._linear.weight) / 4

    def gradient(self, written: Tensor, token: int) -> Tensor:
        """Return the gradient of the reader's summed inputs at a token, ``(2, rows)`` float32."""
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = written.clone().requires_grad_(True)
            read = self._read(leaf)
            if read is None or not read.requires_grad:
                return torch.zeros_like(written, dtype=torch.float32)
            (result,) = torch.autograd.grad(read.reshape(2, -1)[token].sum(), leaf)
        return result.float()

    def _read(self, leaf: Tensor) -> Tensor | None:
        seen: list[Tensor] = []

        def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return (leaf * 1).reshape(output.shape)  # a copy, as models may write into it

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


def _find_attention_rows(probe: _Probe) -> dict[str, Tensor]:
    """Return masks of queries, keys and values, ``(rows,)`` bool each.

    The first token attends only to itself, with weight one, so its output depends on its values
    alone. The output of the second token also depends on the keys and values of the first.
    """
    written = probe.written()
    values = _is_nonzero(probe.gradient(written, token=0)[0])
    later = probe.gradient(written, token=1)
    earlier, own = later[0] != 0, later[1] != 0
    keys = earlier & ~values
    recognised = own.all() and (earlier | ~values).all() and keys.sum() == values.sum()
    if not recognised or not keys.any() or earlier.all():
        return {}
    return {"q": ~earlier, "k": keys, "v": values}


def _find_feed_forward_rows(probe: _Probe) -> dict[str, Tensor]:
    """Return masks of gates and ups, ``(rows,)`` bool each: they are halves, or alternate.

    The activation is linear in the ups, so its gradient for the ups does not depend on them.
    """
    order = torch.arange(probe.rows)
    patterns = (order >= probe.rows // 2, order % 2 == 1)
    linear = [up for first in patterns for up in (first, ~first) if _is_linear(probe, up)]
    return {"gate": ~linear[0], "up": linear[0]} if len(linear) == 1 else {}


def _is_linear(probe: _Probe, rows: Tensor) -> bool:
    """Return whether the activation depends on the rows and is linear in them."""
    written = probe.written()
    rows = rows.to(written.device)
    before = probe.gradient(written, token=0)[0]
    after = probe.gradient(torch.where(rows, 2 * written, written), token=0)[0]
    return bool(before.any()) and torch.equal(before[rows], after[rows])


def _is_nonzero(gradient: Tensor) -> Tensor:
    return gradient.abs() > _ROUNDING * gradient.abs().max()
