"""Reconstruction of blocks, against plain computations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.recoveries.bases.blockwise import compute_error
from sparsity_search.recoveries.block import BlockRecovery
from sparsity_search.recoveries.perp import PerpRecovery
from sparsity_search.recoveries.scales import ScalesRecovery
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.recovery import prune_for


def last_states(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return what flows out of the last block, before the final norm."""
    found: list[Tensor] = []
    block = model.model.layers[-1]  # type: ignore[union-attr, index]
    handle = block.register_forward_hook(lambda _, __, output: found.append(output))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        model(input_ids=tokens)
    handle.remove()
    return found[0]


def test_the_error_is_relative_to_each_token() -> None:
    target = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    output = torch.tensor([[[3.0, 9.0], [1.0, 2.0]]])
    plain, scaled = torch.ones(2), torch.tensor([1.0, 2.0])
    assert float(compute_error(output, target, plain)) == pytest.approx((25 / 25 + 1 / 4) / 2)
    assert float(compute_error(output, target, scaled)) == pytest.approx((6.25 / 13 + 1) / 2)
    large = torch.tensor([1.0, 1000.0])
    same = compute_error(output * large, target * large, scaled * large)
    assert float(same) == pytest.approx((6.25 / 13 + 1) / 2)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_errors_are_those_of_whole_passes(inputs: str) -> None:
    problem = prune_for(tiny_llama(), "weights")
    if inputs == "dense":
        dense = last_states(problem.dense.model, problem.held_out)
        before = last_states(problem.subject.model, problem.held_out)
        text = last_states(problem.dense.model, problem.tokens)
        scale = text.abs().mean((0, 1))
        expected = float(compute_error(before, dense, scale))
    found = BlockRecovery(steps=12, rate=5e-3, inputs=inputs).recover(problem)
    if inputs == "dense":
        after = last_states(problem.subject.model, problem.held_out)
        assert found.before == pytest.approx(expected, rel=1e-4)
        assert found.after == pytest.approx(float(compute_error(after, dense, scale)), rel=1e-4)
    assert found.after < found.before


def test_a_rate_that_spoils_everything_keeps_the_weights() -> None:
    problem = prune_for(tiny_llama(), "weights")
    before = {name: view.read().clone() for name, view in problem.subject.views.items()}
    found = BlockRecovery(steps=4, rate=1e3).recover(problem)
    assert found.after == found.before
    assert [note for note in found.notes if "kept its weights" in note] == list(found.notes)
    assert len(found.notes) == 3
    assert all(torch.equal(before[n], v.read()) for n, v in problem.subject.views.items())


def test_factors_change_readers_alone() -> None:
    problem = prune_for(tiny_llama(), "width")
    linears = {n: m for n, m in problem.subject.model.named_modules() if isinstance(m, nn.Linear)}
    before = {name: linear.weight.clone() for name, linear in linears.items()}
    ScalesRecovery(steps=8, rate=1e-2).recover(problem)
    for name, linear in linears.items():
        reads = name.endswith(("o_proj", "down_proj"))
        assert torch.equal(before[name], linear.weight) != reads, name
        if name.endswith("down_proj"):  # one factor for each column
            ratio = linear.weight / before[name]
            kept = before[name].abs().sum(0) > 0
            spread = ratio[:, kept].max(0).values - ratio[:, kept].min(0).values
            assert float(spread.max()) < 1e-4


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"sequences": 0}, {"held_out": 0}]
)
@pytest.mark.parametrize("kind", [BlockRecovery, PerpRecovery, ScalesRecovery])
def test_settings_are_checked(kind: type[BlockRecovery], settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        kind(**settings)  # type: ignore[arg-type]


def test_units_are_checked() -> None:
    with pytest.raises(ConfigError, match="needs units width or heads"):
        ScalesRecovery().recover(prune_for(tiny_llama(), "weights"))


def test_a_lost_zero_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsity_search.errors import ProfileError

    problem = prune_for(tiny_llama(), "weights")

    def spoil(_: BlockRecovery, given: object) -> None:
        view = next(iter(problem.subject.views.values()))
        view.write(torch.ones_like(view.read()))

    monkeypatch.setattr(BlockRecovery, "train", spoil)
    with pytest.raises(ProfileError, match="changed the number of zeros"):
        BlockRecovery().recover(replace(problem))
