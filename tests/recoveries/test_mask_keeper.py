"""Zeros stay while others train the model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.recoveries.bases.mask_keeper import MaskKeeper
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.recovery import assert_same, list_zeros, prune_for


@pytest.fixture
def subject() -> PrunableModel:
    """A pruned model that can be trained."""
    found = prune_for(tiny_llama(), "weights").subject
    found.model.requires_grad_(True)
    return found


def take_step(model: nn.Module, tokens: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimiser.step()


def test_zeros_stay_in_training(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    before, model = list_zeros(subject), subject.model
    weights = {name: view.read().clone() for name, view in subject.views.items()}
    keeper = MaskKeeper(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        take_step(model, tiny_tokens[:4], optimiser)
        keeper.on_step_end()
    keeper.on_save()
    keeper.on_train_end()
    assert_same(before, list_zeros(subject))
    assert all(not torch.equal(weights[n], v.read()) for n, v in subject.views.items())


def test_without_it_zeros_are_lost(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    before = subject.zeros()
    take_step(subject.model, tiny_tokens[:4], torch.optim.SGD(subject.model.parameters(), lr=0.1))
    assert subject.zeros().n_removed < before.n_removed / 2


def test_a_kept_weight_that_becomes_zero_is_the_least_number(subject: PrunableModel) -> None:
    keeper, view = MaskKeeper(subject.model), next(iter(subject.views.values()))
    weight = view.read().clone()
    row, column = map(int, weight.nonzero()[0])
    weight[row, column] = 0.0
    with torch.no_grad():
        view.write(weight)
    with pytest.raises(ProfileError, match="lost its pattern"):
        keeper.verify()
    keeper.apply()
    keeper.verify()
    assert view.read()[row, column] == torch.finfo(torch.float32).tiny


def test_a_filled_zero_is_found(subject: PrunableModel) -> None:
    keeper, (name, view) = MaskKeeper(subject.model), next(iter(subject.views.items()))
    with torch.no_grad():
        view.write(torch.ones_like(view.read()))
    with pytest.raises(ProfileError, match=name):
        keeper.on_save()


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no zeros to keep"):
        MaskKeeper(tiny_llama())


def test_the_trainer_of_transformers(subject: PrunableModel, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    before, model = list_zeros(subject), subject.model
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, save_steps=2, report_to=[], use_cpu=True,
        learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[MaskKeeper(model)])
    first = copy.deepcopy(model.state_dict())
    trainer.train()
    assert_same(before, list_zeros(subject))
    assert any(not torch.equal(first[name], value) for name, value in model.state_dict().items())


def test_adapters_of_peft_change_kept_weights_alone(
    subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    wrapped = peft.get_peft_model(subject.model, settings)
    plain = wrapped(input_ids=tiny_tokens[:2]).logits
    MaskKeeper(wrapped)
    masked = wrapped(input_ids=tiny_tokens[:2]).logits
    assert not torch.allclose(plain, masked, atol=1e-3)
    masked.sum().backward()
    assert all(p.grad is not None for n, p in wrapped.named_parameters() if "lora_" in n)
    zeros = list_zeros(subject)
    wrapped.merge_and_unload()
    with torch.no_grad():
        for name, view in subject.views.items():
            view.write(view.read().masked_fill(zeros[name], 0.0))
    merged = subject.model(input_ids=tiny_tokens[:2]).logits
    torch.testing.assert_close(merged, masked, rtol=1e-4, atol=1e-4)


def test_adapters_of_peft_learn(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    """The zeros that LoRA begins with were kept as if they were pruned."""
    peft = pytest.importorskip("peft")
    zeros = list_zeros(subject)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    wrapped = peft.get_peft_model(subject.model, settings)
    keeper = MaskKeeper(wrapped)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = wrapped(input_ids=tiny_tokens[:4], labels=tiny_tokens[:4]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        keeper.on_step_end()
        losses.append(float(loss.detach()))
    keeper.on_train_end()
    assert losses[-1] < losses[0] - 0.01
    changed = [n for n, p in wrapped.named_parameters() if "lora_B" in n and bool(p.any())]
    assert len(changed) == 6
    assert {name: int(zero.sum()) for name, zero in zeros.items()} == {
        name: int((view.read() == 0).sum()) for name, view in subject.views.items()
    }


def test_adapters_around_a_dense_model_are_refused() -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="no zeros to keep"):
        MaskKeeper(wrapped)


def test_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model itself"):
        MaskKeeper("pruned")  # type: ignore[arg-type]


def test_a_filled_zero_is_zero_after_the_next_step(subject: PrunableModel) -> None:
    """Optimisers with moments of an earlier training may fill zeros without a gradient."""
    zeros, keeper = list_zeros(subject), MaskKeeper(subject.model)
    with torch.no_grad():
        for view in subject.views.values():
            view.write(view.read() + 1.0)
    keeper.on_step_end()
    assert_same(zeros, list_zeros(subject))
