"""Products of the dense model's inputs of a layer with those of the pruned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.models.anatomy.views import WeightView


class CrossGatherer:
    """Accumulator of ``x̃ xᵀ`` for layers of a block: ``x̃`` dense, ``x`` of the pruned model.

    Inside, each batch runs twice: first the dense model's stream, after `expect_dense`, then the
    pruned model's, after `expect_pruned`. Layers that read one tensor share one sum.

    Args:
        views: The units by name, each in a layer of its own.
    """

    def __init__(self, views: Mapping[str, WeightView]) -> None:
        self._views = views
        self._leader: dict[str, str] = {}
        self._dense: dict[str, Tensor] = {}
        self._current: list[tuple[Tensor, str]] = []
        self._sums: dict[str, Tensor] = {}
        self._n_tokens: dict[str, int] = {}
        self._is_dense = True

    def __enter__(self) -> CrossGatherer:
        self._handles = [
            view.module.register_forward_pre_hook(self._hook(name))
            for name, view in self._views.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._dense.clear()
        self._current.clear()

    def expect_dense(self) -> None:
        """Say that the next pass is one of the dense model's stream."""
        self._is_dense = True
        self._dense.clear()
        self._current.clear()

    def expect_pruned(self) -> None:
        """Say that the next pass is one of the pruned model's stream, of the same batch."""
        self._is_dense = False

    def means(self) -> dict[str, Tensor]:
        """Return the mean over tokens by unit, ``(n_inputs, n_inputs)`` float32."""
        means = {name: (s / self._n_tokens[name]).float() for name, s in self._sums.items()}
        return {name: means[leader] for name, leader in self._leader.items() if leader in means}

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self._is_dense:
                self._note(name, args[0])
            elif self._leader.get(name) == name and name in self._dense:
                self._add(name, self._views[name].inputs(args[0]))

        return hook

    def _note(self, name: str, inputs: Tensor) -> None:
        """Note a dense input, unless another unit reads this very tensor."""
        if name not in self._leader:
            same = (leader for seen, leader in self._current if seen is inputs)
            self._leader[name] = next(same, name)
        if self._leader[name] == name:
            self._current.append((inputs, name))
            self._dense[name] = self._views[name].inputs(inputs)

    @torch.no_grad()
    def _add(self, name: str, inputs: Tensor) -> None:
        dense, pruned = (
            part.reshape(-1, part.shape[-1]).float() for part in (self._dense.pop(name), inputs)
        )
        wide = torch.float32 if pruned.device.type == "mps" else torch.float64
        product = (dense.T @ pruned).to(wide)
        self._sums[name] = product if name not in self._sums else self._sums[name] + product
        self._n_tokens[name] = self._n_tokens.get(name, 0) + len(pruned)
