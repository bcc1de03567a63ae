"""Every family through the whole program: runner, statistics, pruning, checkpoint, search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sparsity_search.config.load import load_config
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.errors import ModelError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.interfaces.evaluator import Evaluator, Proxy
from sparsity_search.models.anatomy.experts import ExpertMatrix
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.identity import compute_weights_digest
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.running import runner as runner_module
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.running.runner import BlockRunner, compute_batch_size
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.spaces.files import bounds_of
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.families import program
from sparsity_search.testing.models import tiny_text, tiny_tokenizer
from sparsity_search.trials.history import Measurement, Score
from sparsity_search.workflow import search as workflow
from tests.helpers.families import ALL_FAMILIES, MIXTURES

#: The smallest search that has a supernet, a round, and a final comparison.
SMALLEST = {**program.SMALLEST, "data.calibration_sequences": 2, "study.rounds": 1}

every_family = pytest.mark.parametrize("family", ALL_FAMILIES)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(runner_module, "_CPU_TOKENS", 8 * 12)
    return draw_random_tokens(9, 12)


@torch.inference_mode()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens, use_cache=False).logits
    return found


@every_family
def test_blocks_one_by_one_are_the_models_own(family: str, tokens: Tensor) -> None:
    subject = PrunableModel(ALL_FAMILIES[family]())
    assert len(subject.blocks) == 3
    runner = BlockRunner(subject, tokens)
    assert len(runner.batches) == 2
    hidden = runner.embed()
    for block in range(3):
        before, hidden = hidden, runner.run(block, hidden)
        assert not torch.equal(hidden[0].hidden, before[0].hidden)
    with torch.inference_mode():
        for states, batch in zip(runner.finish(hidden), runner.batches, strict=True):
            assert torch.equal(states, compute_last_hidden(subject.model, batch))


def inside(experts: Any, expert: int, inputs: Tensor) -> Tensor:
    """Return what an expert's last matrix reads."""
    if not hasattr(experts, "gate_up_proj_bias"):
        gate, up = (inputs @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        return gate * gate.sigmoid() * up
    # GPT-OSS, whose released code limits both and opens the gate a little
    made = inputs @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = made[:, 0::2].clamp(max=7.0), made[:, 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * (1.702 * gate).sigmoid()


def by_plain_hooks(subject: PrunableModel, tokens: Tensor) -> dict[str, InputStatistics]:
    """Return the statistics of all units from forward passes of the whole model.

    What an expert reads is computed anew, from the router's choice and a plain formula. Mamba's
    ``dt_proj`` is not called, but its weight multiplied.
    """
    found: dict[str, InputStatistics] = {}
    handles = []

    def reading(name: str) -> Callable[..., None]:
        view = subject.views[name]
        statistics = found[name] = InputStatistics(view.read().shape[1], Statistic.HESSIAN)

        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            if isinstance(view, ExpertMatrix):
                hidden, chosen = args[:2]
                inputs = hidden[[view.index in row for row in chosen.tolist()]]
                if name.endswith("down_proj"):
                    inputs = inside(module, view.index, inputs)
            if inputs.numel():
                statistics.add(inputs)

        return hook

    def made(name: str) -> Callable[..., None]:
        rank = subject.views[name].read().shape[1]
        statistics = found[name] = InputStatistics(rank, Statistic.HESSIAN)
        return lambda _, args, output: statistics.add(output[..., :rank])

    for name, view in subject.views.items():
        if name.endswith("dt_proj"):
            mixer: Any = subject.model.get_submodule(name.removesuffix(".dt_proj"))
            source = getattr(mixer, "dt_layernorm", mixer.x_proj)
            handles.append(source.register_forward_hook(made(name)))
        else:
            handles.append(view.module.register_forward_pre_hook(reading(name)))
    for batch in tokens.split(compute_batch_size(tokens.device, tokens.shape[1])):
        logits(subject.model, batch)
    for handle in handles:
        handle.remove()
    return found


@every_family
def test_statistics_are_those_of_plain_hooks(family: str, tokens: Tensor) -> None:
    subject = PrunableModel(ALL_FAMILIES[family]())
    expected = by_plain_hooks(subject, tokens)
    known = expected.copy()
    for visit in walk(subject, tokens, Statistic.HESSIAN, rewritten=False):
        for name, statistics in visit.statistics.items():
            plain = known.pop(name)
            if plain.n_tokens:  # or else all tokens are shown to the expert
                assert statistics.n_tokens == plain.n_tokens
                assert_close(statistics.hessian(), plain.hessian(), rtol=1e-4, atol=1e-6)
    assert not known
    routed = [expected[name].n_tokens for name in expected if "experts." in name]
    assert (family in MIXTURES) == bool(routed)
    assert sum(routed) == len(routed) / 4 * tokens.numel() * 2  # two of four for each token


def untouched(subject: PrunableModel) -> dict[str, Tensor]:
    """Return all parameters and buffers that hold no unit's weights, by name."""
    units = {id(parameter) for parameter in subject.parameters()}
    named = dict(subject.model.named_parameters(remove_duplicate=False))
    state = subject.model.state_dict()
    return {k: v.clone() for k, v in state.items() if k not in named or id(named[k]) not in units}


def routers(model: nn.Module) -> set[nn.Module]:
    """Return the modules beside experts, but for shared experts."""
    return {
        child
        for parent in model.modules()
        for child in parent.children()
        if any(_has_experts(c) for c in parent.children())
        if not (_has_experts(child) or hasattr(child, "down_proj")) and list(child.parameters())
    }


def _has_experts(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Experts")


@every_family
@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_prune_save_and_reload(family: str, pruner: str, tokens: Tensor, tmp_path: Path) -> None:
    model = ALL_FAMILIES[family]()
    subject = PrunableModel(model)
    left, layout = untouched(subject), subject.layout
    profile = Budget(0.5).uniform(layout, bounds_of(layout, {}))
    prune_sequentially(subject, profile, PRUNERS.create(pruner), tokens)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))

    again = PrunableModel(loaded)
    assert [(u.name, u.role, u.count) for u in again.layout] == [
        (u.name, u.role, u.count) for u in layout
    ]
    assert again.zeros().removed == profile.removed
    assert profile.n_removed == round(0.5 * sum(p.numel() for p in subject.parameters()))

    kept = untouched(again)
    assert kept.keys() == left.keys()
    assert all(torch.equal(kept[name], left[name]) for name in left)
    names = {parameter: name for name, parameter in model.named_parameters(remove_duplicate=False)}
    for module in (model.get_input_embeddings(), model.get_output_embeddings(), *routers(model)):
        assert {names[parameter] for parameter in module.parameters()} <= left.keys()
    assert {name for p, name in names.items() if p.ndim == 1} <= left.keys()
    assert bool(routers(model)) == (family in MIXTURES)


@cache
def is_tied(family: str) -> bool:
    model: Any = ALL_FAMILIES[family]()
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@every_family
def test_tied_weights_are_one(family: str, tmp_path: Path) -> None:
    model: Any = ALL_FAMILIES[family]()
    subject = PrunableModel(model)
    assert subject.layout.n_weights == sum(p.numel() for p in subject.parameters())
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    buffers = sum(
        model.state_dict()[n].numel() for n, _ in model.named_buffers() if n in model.state_dict()
    )
    assert stored == sum(p.numel() for p in model.parameters()) + buffers
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == is_tied(family)


def test_some_families_are_tied() -> None:
    assert {"gpt2", "llama_tied", "gemma3", "bloom"} <= {f for f in ALL_FAMILIES if is_tied(f)}
    assert not is_tied("llama")


def table_row(family: str) -> list[str]:
    """Return what the table of docs/models.md says of a family, from its tiny model."""
    found = []
    for kind in ("weights", "width", "sublayers", "blocks", "experts"):
        try:
            layout = PrunableModel(ALL_FAMILIES[family](), units=kind).layout
        except ModelError:
            found.append("no")
            continue
        roles = dict.fromkeys(unit.role for unit in layout)
        told = ", ".join(role.replace("_", "-") for role in roles)
        found.append(f"`{' '.join(roles)}`" if kind == "weights" else told)
    return found


@every_family
def test_the_table_of_the_docs(family: str) -> None:
    def key(name: str) -> str:
        return "".join(filter(str.isalnum, name.lower()))

    whole = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    page, _ = whole.split("### Released")
    if f"transformers {transformers.__version__} " not in page:
        pytest.skip("the table is about another release")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    rows = {
        key(name): rest
        for name, *rest in (re.split(r" *\| *", line.strip("| ")) for line in lines)
    }
    assert rows[key(family)] == table_row(family)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """Sessions that searches open; no report is drawn, which would take most of the time."""
    opened: list[Session] = []

    def opening(*args: Any, **keywords: Any) -> Session:
        opened.append(open_session(*args, **keywords))
        return opened[-1]

    monkeypatch.setattr("sparsity_search.engine.opening.open_session", opening)
    monkeypatch.setattr(workflow, "write_report", lambda *_: None)
    return opened


def search(family: str, folder: Path, monitor: Monitor | None = None, **options: Any) -> None:
    save_checkpoint(ALL_FAMILIES[family](), tiny_tokenizer(), folder / "dense")
    (folder / "text.txt").write_text(tiny_text(200))
    given = {"model.name": str(folder / "dense"), "data.calibration": f"file:{folder}/text.txt"}
    config = load_config(None, {**SMALLEST, **given, **options})
    workflow.search(config, folder / "run", monitor=monitor)


@every_family
def test_search(family: str, sessions: list[Session], tmp_path: Path) -> None:
    search(family, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
    stored = json.loads((tmp_path / "run" / "profile.json").read_text())
    found = PrunableModel(loaded)
    profile = SparsityProfile.from_json(found.layout, stored)
    assert found.zeros().removed == profile.removed
    assert profile.n_removed == round(0.5 * found.layout.n_weights)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["search"]["rounds"] == 1
    assert {row["name"] for row in results["rows"]} == {"dense", "uniform", "searched"}
    assert_dense(sessions, family)


def assert_dense(sessions: list[Session], family: str) -> None:
    """Assert that the model is to the bit what it was before the search."""
    (session,) = sessions
    expected = ALL_FAMILIES[family]().state_dict()
    state = session.loaded.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert compute_weights_digest(session.loaded.model) == session.loaded.digest
    modules = session.loaded.model.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


class _Fails(Proxy):
    calls = 0

    def score(self, model: nn.Module, rows: Any) -> Score:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("the evaluator broke")
        return Score(float(self.calls), (float(self.calls),) * len(rows))


@dataclass(frozen=True, kw_only=True)
class Failing(Evaluator):
    """Fails when the search has begun."""

    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:
        return _Fails()


class _Interrupting(Monitor):
    measurements = 0

    def measured(self, measurement: Measurement, top: int) -> None:
        self.measurements += 1
        if self.measurements == 2:
            raise KeyboardInterrupt


FRAGILE = ["gpt2", "llama_tied", "mixtral", "jamba"]


@pytest.mark.parametrize("family", FRAGILE)
def test_the_model_is_unchanged_after_a_failed_search(
    family: str, sessions: list[Session], tmp_path: Path
) -> None:
    evaluator = {"evaluator.name": f"{__name__}:Failing"}
    with pytest.raises(RuntimeError, match="the evaluator broke"):
        search(family, tmp_path, **evaluator)
    assert_dense(sessions, family)


@pytest.mark.parametrize("family", FRAGILE)
def test_the_model_is_unchanged_after_an_interrupted_search(
    family: str, sessions: list[Session], tmp_path: Path
) -> None:
    monitor = _Interrupting()
    search(family, tmp_path, monitor)
    assert monitor.measurements == 2
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert "searched" not in [row["name"] for row in rows]
    assert_dense(sessions, family)
