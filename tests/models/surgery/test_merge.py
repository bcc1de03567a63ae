from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.merge import (
    CollapsePlan,
    collapse,
    compute_mean_similarity,
    merge_removed,
    merge_weights,
)
from sparsity_search.profiles.profile import from_counts
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import shorter

PROJECTIONS = (
    *(f"self_attn.{letter}_proj" for letter in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def random_weights(n: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(4, 5, generator=source) for _ in range(n)]


def rule(weights: list[Tensor]) -> Tensor:
    """The rule as the paper writes it, in float64."""
    first = weights[0].double()
    return first + sum((w.double() - first for w in weights[1:]), torch.zeros_like(first))


def telescoped(weights: list[Tensor]) -> Tensor:
    """The released code's rule: each difference is from the weight merged so far."""
    total = weights[0].double()
    for weight in weights[1:]:
        total = total + (weight.double() - total)
    return total


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_rule(n: int) -> None:
    weights = random_weights(n)
    found = merge_weights(weights[0], weights[1:])
    torch.testing.assert_close(found.double(), rule(weights), rtol=1e-5, atol=1e-5)
    same = torch.allclose(found.double(), telescoped(weights), atol=1e-5)
    assert same == (n < 3)  # the two rules differ from three weights on


def test_one_weight_stays_and_of_two_the_last_does() -> None:
    first, second = random_weights(2)
    alone = merge_weights(first, [])
    assert torch.equal(alone, first)
    assert alone is not first
    assert torch.equal(merge_weights(first, [second]), second)
    half = merge_weights(first.bfloat16(), [second.bfloat16()])
    assert torch.equal(half.bfloat16(), second.bfloat16())


def by_hand(model: nn.Module, kept: int, others: list[int]) -> nn.Module:
    """Return a shorter model whose ``kept`` block took up others, linear by linear."""
    made = shorter(model, others)
    for name in PROJECTIONS:
        weights = [model.model.layers[i].get_submodule(name).weight for i in (kept, *others)]
        made.model.layers[kept].get_submodule(name).weight.copy_(rule(weights).float())
    return made


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens).logits


def empty(subject: PrunableModel, removed: list[int]) -> None:
    for unit, gone in zip(subject.layout, removed, strict=True):
        if gone:
            view = subject.views[unit.name]
            view.write(torch.zeros_like(view.read()))


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
def test_removed_blocks_are_merged_into_the_one_before(units: str, tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=5)
    expected = by_hand(model, 1, [2, 3])
    subject = PrunableModel(model, units=units)
    removed = [int(unit.block in (2, 3)) for unit in subject.layout]
    merge_removed(subject, from_counts(subject.layout, removed))
    empty(subject, removed)
    torch.testing.assert_close(
        logits(model, tiny_tokens), logits(expected, tiny_tokens), rtol=1e-3, atol=1e-3
    )


def changed(model: nn.Module, removed: list[int], **settings: str) -> set[int]:
    """Return the blocks that merging rewrites."""
    before = copy_weights(model)
    subject = PrunableModel(model, units="blocks", **settings)
    merge_removed(subject, from_counts(subject.layout, removed))
    after = copy_weights(model)
    return {int(n.split(".")[2]) for n in after if not torch.equal(after[n], before[n])}


def test_what_is_merged() -> None:
    assert changed(tiny_llama(layers=5), [0, 0, 0, 0, 0]) == set()
    assert changed(tiny_llama(layers=5), [1, 1, 0, 0, 0]) == set()  # there is none before
    assert changed(tiny_llama(layers=5), [0, 1, 0, 1, 1]) == {0, 2}
    # block 1 is no unit: what is behind it has no kept unit before it
    assert changed(tiny_llama(layers=5), [0, 1, 0, 1], exclude=r"layers\.1$") == {3}


def test_blocks_that_are_empty_add_nothing() -> None:
    model = tiny_llama(layers=3)
    subject = PrunableModel(model, units="blocks")
    empty(subject, [0, 1, 0])
    assert changed(model, [0, 1, 0]) == set()


def test_sublayers_are_merged_with_their_own_role() -> None:
    model = tiny_llama(layers=3)
    subject, before = PrunableModel(model, units="sublayers"), copy_weights(model)
    merge_removed(subject, from_counts(subject.layout, [0, 0, 0, 1, 0, 0]))
    after = copy_weights(model)
    for name in PROJECTIONS:
        source = 1 if name.startswith("mlp") else 0
        first = after[f"model.layers.0.{name}.weight"]
        assert torch.equal(first, before[f"model.layers.{source}.{name}.weight"])


@pytest.mark.parametrize("units", ["weights", "width"])
def test_other_units_are_refused(units: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units=units)
    with pytest.raises(ConfigError, match="whole blocks or sublayers"):
        merge_removed(subject, subject.zeros())
    with pytest.raises(ConfigError, match="--units blocks"):
        collapse(subject, tiny_tokens, CollapsePlan())


def test_similarity() -> None:
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    second = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    assert compute_mean_similarity(first, second) == pytest.approx((0.5**0.5 - 1) / 2)


def walk_by_hand(model: nn.Module, tokens: Tensor, plan: CollapsePlan) -> nn.Module:
    """Return the published walk's model, which really gets shorter."""

    def states(made: nn.Module) -> Tensor:
        with torch.inference_mode():
            return made.base_model(input_ids=tokens).last_hidden_state

    dense, place = states(model), model.config.num_hidden_layers - plan.run
    while place >= plan.lowest:
        made = by_hand(model, place, list(range(place + 1, place + plan.run)))
        accepted = compute_mean_similarity(dense, states(made)) > plan.threshold
        model = made if accepted else model
        place -= plan.interval if accepted else 1
        place = min(place, model.config.num_hidden_layers - plan.run)
    return model


@pytest.mark.parametrize(
    ("plan", "removed"),
    [
        (CollapsePlan(run=2, threshold=-1.0), (0, 1, 1, 1, 1, 1)),
        (CollapsePlan(run=2, threshold=0.2), (0, 0, 1, 1, 1, 1)),
        (CollapsePlan(run=2, threshold=0.2, interval=2), (0, 1, 0, 1, 0, 1)),
        (CollapsePlan(run=2, threshold=0.2, lowest=2), (0, 0, 0, 1, 1, 1)),
        (CollapsePlan(run=2, threshold=0.7), (0, 0, 0, 0, 0, 1)),
        (CollapsePlan(run=3, threshold=-1.0), (0, 0, 1, 1, 1, 1)),
        (CollapsePlan(run=3, threshold=0.2), (0, 0, 0, 0, 1, 1)),
    ],
)
def test_collapse_is_the_published_walk(
    tiny_tokens: Tensor, plan: CollapsePlan, removed: tuple[int, ...]
) -> None:
    model = tiny_llama(layers=6, initializer_range=0.1)
    expected = walk_by_hand(model, tiny_tokens[:3], plan)
    subject = PrunableModel(model, units="blocks")
    profile = collapse(subject, tiny_tokens[:3], plan)
    assert profile.removed == removed
    assert sum(removed) == 6 - expected.config.num_hidden_layers
    subject.verify(profile)
    torch.testing.assert_close(
        logits(model, tiny_tokens), logits(expected, tiny_tokens), rtol=1e-3, atol=1e-3
    )


def test_nothing_similar_enough_leaves_the_model(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4)
    before = copy_weights(model)
    profile = collapse(
        PrunableModel(model, units="blocks"), tiny_tokens, CollapsePlan(run=2, threshold=1.0)
    )
    assert profile.removed == (0, 0, 0, 0)
    after = copy_weights(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_runs_longer_than_the_model(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="blocks")
    assert not any(collapse(subject, tiny_tokens, CollapsePlan()).removed)


def test_empty_blocks_are_no_part_of_a_run(tiny_tokens: Tensor) -> None:
    model, plan = tiny_llama(layers=4), CollapsePlan(run=3, threshold=-1.0)
    empty(PrunableModel(model, units="blocks"), [0, 1, 0, 0])
    expected = walk_by_hand(shorter(model, {1}), tiny_tokens, plan)
    assert expected.config.num_hidden_layers == 1
    profile = collapse(PrunableModel(model, units="blocks"), tiny_tokens, plan)
    assert profile.removed == (0, 1, 1, 1)
    torch.testing.assert_close(
        logits(model, tiny_tokens), logits(expected, tiny_tokens), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "setting", [{"run": 1}, {"interval": 0}, {"lowest": -1}, {"threshold": 1.5}]
)
def test_settings(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        CollapsePlan(**setting)


def test_a_collapse_needs_all_blocks(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), r"layers\.1$", units="blocks")
    with pytest.raises(ConfigError, match="without --exclude"):
        collapse(subject, tiny_tokens, CollapsePlan())
