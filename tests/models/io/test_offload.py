from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.identity import compute_weights_digest
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.offload import Offload, get_offload
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.running.recording import record
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import (
    save_tiny_model,
    tiny_llama,
    tiny_mixtral,
    tiny_tokenizer,
)
from tests.helpers.families import FAMILIES

CPU = torch.device("cpu")
PROFILE = Budget(0.5)


class Device:
    """Stands for another device: what is sent there is a copy, and it knows what it holds."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []
        self.most = 0

    def send(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.clone())
        return self.sent[-1]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(Offload, "_send", lambda _, tensor: made.send(tensor))
    return made


def offloaded(model: nn.Module) -> PrunableModel:
    Offload(model, CPU)
    return PrunableModel(model)


def resident(subject: PrunableModel) -> list[int]:
    """Return which blocks' weights are not those that rest in the file."""
    weights = {t.data_ptr() for t in subject.offload._weights.values()}
    return [
        index
        for index, block in enumerate(subject.blocks)
        if any(p.data_ptr() not in weights for p in block.parameters())
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model(family: str, device: Device) -> None:
    model = FAMILIES[family]()
    tokens = draw_random_tokens(2, 16)
    expected, digest = model(tokens).logits, compute_weights_digest(model)
    subject = offloaded(model)
    assert torch.equal(model(tokens).logits, expected)
    assert device.sent
    assert resident(subject) == []
    assert compute_weights_digest(model) == digest


def test_one_block_at_a_time_is_on_the_device(device: Device) -> None:
    subject = offloaded(tiny_llama())
    seen: list[list[int]] = []
    for block in subject.blocks:
        block.mlp.register_forward_hook(lambda *_: seen.append(resident(subject)))
    subject.model(draw_random_tokens(1, 8))
    assert seen == [[0], [1], [2]]


def test_the_runner_keeps_hidden_states_and_finishes(device: Device) -> None:
    tokens = draw_random_tokens(10, 16)
    runners = [
        BlockRunner(s, tokens) for s in (offloaded(tiny_llama()), PrunableModel(tiny_llama()))
    ]
    hidden = [runner.embed() for runner in runners]
    for block in range(3):
        hidden = [r.run(block, h) for r, h in zip(runners, hidden, strict=True)]
    ends = [runner.finish(states) for runner, states in zip(runners, hidden, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert runners[0].waiting == CPU


@pytest.mark.parametrize("make", [tiny_llama, tiny_mixtral])
def test_pruning_is_the_same(device: Device, make: Callable[[], nn.Module]) -> None:
    tokens, found = draw_random_tokens(4, 16), []
    for subject in (PrunableModel(make()), offloaded(make())):
        profile = PROFILE.uniform(subject.layout, {})
        prune_sequentially(subject, profile, SparseGPTPruner(), tokens)
        found.append(copy_weights(subject.model))
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_blocks_are_present_where_they_are_pruned(device: Device) -> None:
    subject, seen = offloaded(tiny_llama()), []
    profile = PROFILE.uniform(subject.layout, {})
    prune_sequentially(
        subject,
        profile,
        SparseGPTPruner(),
        draw_random_tokens(2, 8),
        on_block=lambda _: seen.append(resident(subject)),
    )
    assert seen == [[0], [1], [2]]
    assert resident(subject) == []


def test_what_is_written_in_presence_stays(device: Device) -> None:
    subject = offloaded(tiny_llama())
    view = subject.views["model.layers.1.mlp.up_proj"]
    with subject.present(1):
        assert resident(subject) == [1]
        view.write(torch.ones_like(view.read()))
        subject.model(draw_random_tokens(1, 8))  # as it runs, it stays
        assert resident(subject) == [1]
    assert resident(subject) == []
    assert (view.read() == 1).all()


def test_a_bias_that_comes_and_goes(device: Device) -> None:
    subject = offloaded(tiny_llama())
    linear = subject.blocks[0].mlp.down_proj
    with subject.present(0):
        linear.bias = nn.Parameter(torch.ones(32), requires_grad=False)
    assert (linear.bias == 1).all()
    with_bias = subject.model(draw_random_tokens(1, 8)).logits
    with subject.present(0):
        linear.bias = None
    assert not torch.equal(subject.model(draw_random_tokens(1, 8)).logits, with_bias)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_the_dense_model(
    device: Device, error: type[BaseException]
) -> None:
    subject = offloaded(tiny_llama())
    digest = compute_weights_digest(subject.model)

    def interrupt(*_: Any) -> None:
        raise error

    handle = subject.blocks[1].mlp.register_forward_hook(interrupt)

    def work() -> None:
        with subject.preserved():
            for view in subject.views.values():
                view.write(torch.zeros_like(view.read()))
            subject.model(draw_random_tokens(1, 8))

    with pytest.raises(error):
        work()
    handle.remove()
    assert resident(subject) == []
    assert compute_weights_digest(subject.model) == digest


def test_snapshots_rest_in_files() -> None:
    subject = offloaded(tiny_llama())
    copies = subject.snapshot()
    assert len(subject.offload._copies) == 1
    name = subject.layout[0].name
    subject.views[name].write(torch.zeros_like(copies[name]))
    assert not torch.equal(copies[name], subject.views[name].read())
    del copies
    subject.snapshot()
    assert len(subject.offload._copies) == 1


def test_shared_weights_stay_shared() -> None:
    model = tiny_llama()
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    Offload(model, CPU)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert model.model.layers[2].mlp.up_proj.weight is weight


def test_backward_passes_are_refused() -> None:
    subject = offloaded(tiny_llama())
    with pytest.raises(ConfigError, match="leave out --offload"):
        record(subject, draw_random_tokens(1, 8), torch.arange(4), lambda *_: [])


@pytest.fixture(params=["llama", "tied", "mixtral", "sharded", "bin"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / "m"
    match request.param:
        case "mixtral":
            save_checkpoint(tiny_mixtral(), tiny_tokenizer(), path)
        case "sharded":
            save_tiny_model(path)
            (path / "model.safetensors").unlink()
            tiny_llama().save_pretrained(path, max_shard_size="40KB")
        case "bin":
            save_tiny_model(path)
            (path / "model.safetensors").unlink()
            torch.save(tiny_llama().state_dict(), path / "pytorch_model.bin")
        case name:
            save_tiny_model(path, tied=name == "tied")
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading(folder: str, dtype: str) -> None:
    whole = load_model(folder, dtype=dtype, device="cpu")
    loaded = load_model(folder, dtype=dtype, device="cpu", offload=True)
    assert loaded.digest == whole.digest
    assert not any(p.is_meta or p.requires_grad for p in loaded.model.parameters())
    tokens = draw_random_tokens(2, 16)
    assert torch.equal(loaded.model(tokens).logits, whole.model(tokens).logits)
    assert not [m for m in loaded.model.modules() if "forward" in m.__dict__]
    assert not [m for m in loaded.model.modules() if hasattr(m, "_hf_hook")]
    subject = PrunableModel(loaded.model)
    assert subject.offload is get_offload(loaded.model) is not None
    assert resident(subject) == []


def test_saving(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "m", tied=True))
    loaded = load_model(folder, device="cpu", offload=True)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "again")
    again = load_model(str(tmp_path / "again"), device="cpu")
    assert again.digest == loaded.digest


def test_a_model_in_memory_is_not_offloaded() -> None:
    subject = PrunableModel(tiny_llama())
    assert subject.offload is None
    with subject.present(0):
        assert isinstance(subject.snapshot(), dict)
    assert get_offload(copy.deepcopy(subject.model)) is None
