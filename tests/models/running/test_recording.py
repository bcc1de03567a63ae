from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.recording import (
    BackwardPass,
    LayerRecording,
    Recordings,
    _find_labels,
    choose_positions,
    compute_slopes,
    compute_total_slope,
    draw_labels,
    record,
)
from sparsity_search.testing.allocator import assert_unchanged
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.families import ALL_FAMILIES, FAMILIES

LENGTH = 12
EVERYWHERE = torch.arange(LENGTH)


@pytest.fixture
def tokens() -> Tensor:
    """Three sequences: a full batch and a smaller one."""
    return draw_random_tokens(3, LENGTH)


def of_text(tokens: Tensor, summed: bool = False):
    """Differentiate the log-likelihood of the text, each token at its own position."""

    def differentiate(logits: Tensor, rows: slice) -> Iterator[BackwardPass]:
        labels = nn.functional.one_hot(tokens[rows], logits.shape[-1])
        yield BackwardPass(labels.to(logits) - logits.softmax(-1), summed=summed)

    return differentiate


def likelihoods(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the log-likelihood of each sequence."""
    scores = model(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    return scores.gather(2, tokens[..., None]).sum((1, 2))


def changed(subject: PrunableModel, name: str) -> Tensor:
    """Return a random change of one unit, in its dtype."""
    dense = subject.views[name].read()
    source = torch.Generator().manual_seed(len(name))
    return torch.randn(dense.shape, generator=source, dtype=torch.float64).to(dense)


def derivatives(subject: PrunableModel, name: str, change: Tensor, tokens: Tensor) -> Tensor:
    """Return autograd's derivative of each sequence's log-likelihood along a written change.

    Of structures only what reads them is moved: what makes them acts through the readers.
    """
    view, model = subject.views[name], subject.model
    shape = view.structures
    if shape is not None:
        change = change.clone()
        shape.bodies(change)[:, :, shape.inner :] = 0
    with subject.preserved() as dense:
        before = copy_weights(model)
        view.write(dense[name] + change)
        moved = {key: weight - before[key] for key, weight in copy_weights(model).items()}
    found = []
    for sequence in tokens:
        model.requires_grad_(True)
        with torch.enable_grad():
            likelihoods(model, sequence[None]).sum().backward()
        model.requires_grad_(False)
        parts = [p.grad * moved[k] for k, p in model.named_parameters() if p.grad is not None]
        found.append(float(sum(part.sum() for part in parts)))
        model.zero_grad()
    return torch.tensor(found, dtype=torch.float64)


def units_checked(subject: PrunableModel) -> list[str]:
    names = list(subject.views)
    return [names[0], names[len(names) // 2], names[-1]]


@pytest.mark.parametrize("units", ["weights", "width", "heads", "sublayers", "blocks"])
@torch.no_grad()
def test_slopes_are_directional_derivatives(units: str, tokens: Tensor) -> None:
    model = tiny_llama(dtype=torch.float64, attention_bias=True, mlp_bias=True)
    subject = PrunableModel(model, units=units)
    for linear in subject.model.modules():
        if isinstance(linear, nn.Linear) and linear.bias is not None:
            linear.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
    kept = record(subject, tokens, EVERYWHERE, of_text(tokens))
    summed = record(subject, tokens, EVERYWHERE, of_text(tokens, summed=True))
    for name in units_checked(subject):
        view, change = subject.views[name], changed(subject, name)
        if units == "blocks":  # both readers write, the later one after what the first changed
            assert len(view.effects(change)) == 2
        expected = derivatives(subject, name, change, tokens)
        found = compute_slopes(view, change, kept).view(len(tokens), LENGTH).sum(1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
        total = float(expected.sum())
        assert compute_total_slope(view, change, summed) == pytest.approx(
            total, rel=1e-5, abs=1e-4
        )


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "gemma3", "gpt2"])
@torch.no_grad()
def test_other_families(family: str, tokens: Tensor) -> None:
    subject = PrunableModel(FAMILIES[family]().double())
    kept = record(subject, tokens, EVERYWHERE, of_text(tokens))
    for name in units_checked(subject):
        change = changed(subject, name)
        expected = derivatives(subject, name, change, tokens)
        found = compute_slopes(subject.views[name], change, kept).view(len(tokens), LENGTH).sum(1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_layer_that_is_not_called(tokens: Tensor) -> None:
    """Mamba multiplies the weight of ``dt_proj`` itself."""
    subject = PrunableModel(ALL_FAMILIES["mamba"]().double())
    kept = record(subject, tokens, EVERYWHERE, of_text(tokens))
    summed = record(subject, tokens, EVERYWHERE, of_text(tokens, summed=True))
    for block in range(3):
        name = f"backbone.layers.{block}.mixer.dt_proj"
        view, change = subject.views[name], changed(subject, name)
        expected = derivatives(subject, name, change, tokens)
        found = compute_slopes(view, change, kept).view(len(tokens), LENGTH).sum(1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        assert compute_total_slope(view, change, summed) == pytest.approx(
            float(expected.sum()), rel=1e-4
        )


def test_a_layer_that_takes_no_part(tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.spare = nn.Linear(32, 32).requires_grad_(False)
    subject = PrunableModel(model)
    with pytest.raises(ConfigError, match=r"(is not called|does not use).*--exclude"):
        record(subject, tokens, EVERYWHERE, of_text(tokens))


@torch.no_grad()
def test_weight_gradients_are_autograds(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(dtype=torch.float64))
    found = record(subject, tokens, EVERYWHERE, of_text(tokens, summed=True))
    twin = tiny_llama(dtype=torch.float64).requires_grad_(True)
    with torch.enable_grad():
        likelihoods(twin, tokens).sum().backward()
    gradients = {name: module.weight.grad for name, module in twin.named_modules()
                 if isinstance(module, nn.Linear)}  # fmt: skip
    for name, module in subject.model.named_modules():
        if module in found:
            assert found[module].inputs == []
            torch.testing.assert_close(
                found[module].weight, gradients[name].float(), rtol=1e-5, atol=1e-5
            )
    assert len(found) == len(subject.views)


@pytest.mark.parametrize("units", ["weights", "width", "blocks"])
def test_slope_sums_slopes(units: str, tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units=units)
    kept = record(subject, tokens, EVERYWHERE, of_text(tokens))
    summed = record(subject, tokens, EVERYWHERE, of_text(tokens, summed=True))
    for name, view in subject.views.items():
        change = changed(subject, name)
        expected = float(compute_slopes(view, change, kept).double().sum())
        assert compute_total_slope(view, change, summed) == pytest.approx(
            expected, rel=1e-4, abs=1e-3
        )


def test_only_some_positions_are_kept(tiny_subject: PrunableModel, tokens: Tensor) -> None:
    everything = record(tiny_subject, tokens, EVERYWHERE, of_text(tokens))
    some = torch.tensor([1, 5, 6, 11])
    few = record(tiny_subject, tokens, some, of_text(tokens))
    for name, view in tiny_subject.views.items():
        change = changed(tiny_subject, name)
        expected = (
            compute_slopes(view, change, everything).view(len(tokens), LENGTH)[:, some].flatten()
        )
        torch.testing.assert_close(
            compute_slopes(view, change, few), expected, rtol=1e-4, atol=1e-4
        )


def test_layers_that_read_one_tensor_share_its_copy(
    tiny_subject: PrunableModel, tokens: Tensor
) -> None:
    found = record(tiny_subject, tokens, EVERYWHERE, of_text(tokens))
    block = tiny_subject.blocks[1]
    attention, mlp = block.self_attn, block.mlp
    for readers in (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (mlp.gate_proj, mlp.up_proj),
    ):
        one, *others = [[x.data_ptr() for x in found[m].inputs] for m in readers]
        assert all(other == one for other in others)
    apart = (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj)
    assert len({found[m].inputs[0].data_ptr() for m in apart}) == 4
    assert [len(x) for x in found[mlp.down_proj].inputs] == [2 * LENGTH, LENGTH]


def test_passes_follow_each_other(tiny_subject: PrunableModel, tokens: Tensor) -> None:
    def both(logits: Tensor, rows: slice) -> Iterator[BackwardPass]:
        yield from of_text(tokens, summed=True)(logits, rows)
        yield from of_text(tokens)(logits, rows)
        yield from of_text(tokens)(logits, rows)

    found = record(tiny_subject, tokens, EVERYWHERE, both)
    once: Recordings = record(tiny_subject, tokens, EVERYWHERE, of_text(tokens))
    summed = record(tiny_subject, tokens, EVERYWHERE, of_text(tokens, summed=True))
    for module, kept in once.items():
        assert torch.equal(found[module].weight, summed[module].weight)  # type: ignore[arg-type]
        twice = [g for gradient in kept.gradients for g in (gradient, gradient)]
        assert all(map(torch.equal, found[module].gradients, twice))
        assert len(found[module].gradients) == len(twice)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(
    tiny_subject: PrunableModel, tokens: Tensor, fails: bool
) -> None:
    before = copy_weights(tiny_subject.model)

    def broken(logits: Tensor, rows: slice) -> Iterator[BackwardPass]:
        yield from of_text(tokens)(logits, rows)
        if fails:
            raise RuntimeError("out of memory")

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            record(tiny_subject, tokens, EVERYWHERE, broken)
    else:
        record(tiny_subject, tokens, EVERYWHERE, broken)
    assert_unchanged(tiny_subject.model, before)
    for parameter in tiny_subject.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_experts_are_refused_before_the_model_runs(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral())
    with pytest.raises(ConfigError, match="leave experts out"):
        record(subject, tokens, EVERYWHERE, of_text(tokens))


@given(st.integers(1, 300), st.integers(1, 300), st.data())
@settings(max_examples=60)
def test_runs(length: int, positions: int, data: st.DataObject) -> None:
    span = data.draw(st.integers(1, length))
    found = choose_positions(length, positions, span).view(-1, span)
    assert found.min() >= 0
    assert found.max() < length
    assert (found.diff(dim=1) == 1).all()
    assert len(found.unique()) == found.numel()
    assert found.numel() <= max(span, positions)
    assert found.numel() > min(positions, length) - span
    gaps = found[:, 0].diff()
    assert len(gaps.unique()) <= 1
    ends = int(found[0, 0]), length - 1 - int(found[-1, -1])
    assert ends[1] - ends[0] <= 1 + length % len(found)


def test_drawn_labels() -> None:
    logits = torch.tensor([[[0.0, 1.0, 3.0], [2.0, -1.0, 0.0]]]).repeat(2, 1, 1)
    probabilities = logits.softmax(-1)
    found = [backward.gradient for backward in draw_labels(logits, 4000, 0)]
    labels = torch.stack(found) + probabilities
    assert ((labels - 1).abs() < 1e-6).sum(-1).eq(1).all()  # one label, the others nothing
    torch.testing.assert_close(labels.mean(0), probabilities, atol=0.03, rtol=0)
    assert not torch.equal(labels[:, 0], labels[:, 1])  # each position draws for itself


def test_labels_at_the_ends_of_the_distribution() -> None:
    """A token without probability is never drawn, whatever rounding does to the sums."""
    probabilities = torch.tensor([[0.0, 0.5, 0.4999, 0.0]] * 3)
    drawn = torch.tensor([[0.0], [0.5], [1 - 2**-24]])
    assert _find_labels(probabilities, drawn).flatten().tolist() == [1, 1, 2]


def test_drawn_labels_by_key() -> None:
    logits = torch.zeros(1, 50, 7)

    def drawn(seed: int, *keys: int) -> Tensor:
        (backward,) = draw_labels(logits, 1, seed, *keys)
        return backward.gradient

    state = torch.get_rng_state()
    assert torch.equal(drawn(1, 2), drawn(1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for other in (drawn(2, 2), drawn(1, 3), drawn(1)):
        assert not torch.equal(drawn(1, 2), other)
    assert drawn(0).dtype == torch.float32


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_in_memory(tiny_subject: PrunableModel, tokens: Tensor, fails: bool) -> None:
    """Hooks in a graph hold recordings: those that are left tell of a graph that is."""

    def differentiate(logits: Tensor, _: slice) -> Iterator[BackwardPass]:
        yield BackwardPass(torch.ones_like(logits), summed=True)
        if fails:
            raise ArithmeticError
        yield BackwardPass(torch.ones_like(logits))

    def alive() -> int:
        gc.collect()
        return sum(type(each) is LayerRecording for each in gc.get_objects())

    before = alive()
    with pytest.raises(ArithmeticError) if fails else nullcontext():
        record(tiny_subject, tokens, EVERYWHERE, differentiate)
    assert alive() == before
