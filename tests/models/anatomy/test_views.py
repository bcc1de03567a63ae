from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral


def passed(model: nn.Module, linears: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Return input and output of each layer in one forward pass, ``(tokens, width)``."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def take(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        seen[module] = (args[0].flatten(0, -2), output.flatten(0, -2))

    handles = [linear.register_forward_hook(take) for linear in linears]
    with torch.inference_mode():
        model(input_ids=draw_random_tokens(2, 9))
    for handle in handles:
        handle.remove()
    return [seen[linear] for linear in linears]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("units", ["weights", "width", "heads", "sublayers", "blocks"])
def test_effects_are_what_the_layers_write(units: str, bias: bool) -> None:
    model = tiny_llama(layers=2, attention_bias=bias, mlp_bias=bias)
    subject = PrunableModel(model, units=units)
    for view in subject.views.values():
        dense = view.read().clone()
        change = torch.randn(dense.shape, generator=torch.Generator().manual_seed(2))
        effects = view.effects(change)
        readers = [effect.linear for effect in effects]
        assert len(readers) == (2 if units == "blocks" else 1)
        for effect, (inputs, outputs) in zip(effects, passed(model, readers), strict=True):
            view.write(dense + change)
            with torch.inference_mode():
                expected = effect.linear(inputs) - outputs
            view.write(dense)
            torch.testing.assert_close(effect.outputs(inputs), expected, rtol=1e-4, atol=1e-4)


def test_experts_have_none() -> None:
    view = next(v for name, v in PrunableModel(tiny_mixtral()).views.items() if "expert" in name)
    with pytest.raises(ConfigError, match="--exclude"):
        view.effects(view.read())
