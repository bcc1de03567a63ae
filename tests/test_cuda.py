"""Every plugin on a GPU does what it does on the CPU. Skipped where there is none.

The CPU's results are the reference: what they are worth is tested elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.interfaces.evaluator import Evaluator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import ALLOCATORS, EVALUATORS, PRUNERS, SEARCHERS, SENSITIVITIES
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import save_tiny_model, tiny_llama, tiny_mixtral, tiny_text
from sparsity_search.workflow.search import search
from tests.helpers.names import OF_EXPERTS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = "cuda"

#: Evaluators of text; the others bring their own data.
OF_TEXT = [n for n in EVALUATORS.names() if EVALUATORS.get(n).own_data == Evaluator.own_data]
#: A pruner for each kind of units.
KINDS = {"weights": "wanda", "width": "wanda_sp", "sublayers": "drop", "blocks": "drop"}


def subject_on(device: str, units: str = "weights", experts: bool = False) -> PrunableModel:
    model: Any = tiny_mixtral() if experts else tiny_llama()
    return PrunableModel(model.to(device), units=units)


def uneven(subject: PrunableModel) -> SparsityProfile:
    wanted = torch.rand(len(subject.layout), generator=torch.Generator().manual_seed(0))
    return Budget(0.5).project(subject.layout, wanted.numpy())


def pruned(device: str, name: str, units: str) -> dict[str, torch.Tensor]:
    subject = subject_on(device, units, name in OF_EXPERTS)
    tokens = draw_random_tokens(10, 16)
    prune_sequentially(subject, uneven(subject), PRUNERS.create(name), tokens)
    return {name: weight.cpu() for name, weight in copy_weights(subject.model).items()}


@pytest.mark.parametrize(
    ("name", "units"), [(n, u) for n in PRUNERS.names() for u in PRUNERS.get(n).units]
)
def test_pruners(name: str, units: str) -> None:
    """The same number of zeros, and the same ones up to ties that rounding decides."""
    here, there = pruned("cpu", name, units), pruned(GPU, name, units)
    assert sum(int((w == 0).sum()) for w in here.values()) == sum(
        int((w == 0).sum()) for w in there.values()
    )
    same = sum(int(((here[n] == 0) == (there[n] == 0)).sum()) for n in here)
    assert same >= 0.98 * sum(w.numel() for w in here.values())


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_allocators(name: str) -> None:
    """The same profile, up to a few weights."""
    found = []
    for device in ("cpu", GPU):
        allocator = ALLOCATORS.create(name)
        subject = subject_on(device, allocator.units[0])
        before = copy_weights(subject.model)
        bounds = Bounds.of(subject.layout)
        found.append(allocator.allocate(subject, draw_random_tokens(9, 16), Budget(0.5), bounds))
        assert all(torch.equal(w, before[n]) for n, w in subject.model.state_dict().items())
    here, there = (np.array(profile.removed) for profile in found)
    assert here.sum() == there.sum()
    sizes = np.array([unit.count for unit in found[0].layout])
    # choices among alternatives, e.g. a slope or a step, may tip
    assert (np.abs(here - there) / sizes).mean() < 0.05


@pytest.mark.parametrize("name", SENSITIVITIES.names())
@pytest.mark.parametrize("units", KINDS)
def test_sensitivities(name: str, units: str) -> None:
    sensitivity = SENSITIVITIES.create(name)
    if units not in sensitivity.units:
        pytest.skip(f"not for {units}")
    found = []
    for device in ("cpu", GPU):
        subject = subject_on(device, units)
        counts = build_count_tables(subject.layout, (0.5, 1.0))
        pruner = PRUNERS.create(KINDS[units])
        scores = sensitivity.measure(subject, draw_random_tokens(6, 16), pruner, counts)
        found.append(np.concatenate([np.array(losses) for losses in scores.losses]))
    np.testing.assert_allclose(found[1], found[0], rtol=0.02, atol=1e-4 * np.abs(found[0]).max())


@pytest.mark.parametrize("name", OF_TEXT)
def test_evaluators(name: str) -> None:
    tokens, values = draw_random_tokens(4, 24), []
    for device in ("cpu", GPU):
        subject = subject_on(device)
        proxy = EVALUATORS.create(name).bind(subject.model, tokens)
        prune_sequentially(subject, uneven(subject), PRUNERS.create("wanda"), tokens)
        values.append(proxy.score(subject.model, range(4)))
    assert values[1].value == pytest.approx(values[0].value, rel=0.01)
    np.testing.assert_allclose(values[1].parts, values[0].parts, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("propagate", ["centre", "dense", "expectation", "mean"])
def test_supernets(propagate: Any) -> None:
    """Variants live on the GPU, and the model is its old self afterwards."""
    subject, tokens = subject_on(GPU), draw_random_tokens(6, 16)
    before = copy_weights(subject.model)
    centre = Budget(0.5).project(subject.layout, np.full(len(subject.layout), 0.5))
    counts = tuple((removed,) for removed in centre.removed)
    plan = SupernetDesign(
        pruner=PRUNERS.create("sparsegpt"), tables=counts, centre=centre, propagate=propagate
    )
    supernet = build_supernet(subject, tokens, plan)
    with supernet.resident() as switch:
        switch.to(centre)
        zeros = sum(int((view.read() == 0).sum()) for view in subject.views.values())
        assert zeros == centre.n_removed
    assert all(torch.equal(w, before[n]) for n, w in subject.model.state_dict().items())


@pytest.mark.parametrize("searcher", SEARCHERS.names())
def test_a_search_twice_gives_the_same_profile(tmp_path: Path, searcher: str) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    options: dict[str, Any] = {
        "model.name": str(tmp_path / "model"),
        "model.device": GPU,
        "budget.sparsity": 0.6,
        "searcher": {"name": searcher},
        "study.rounds": 3,
        "ladder.candidates": 4,
        "ladder.rungs": [{"tokens": 16, "survivors": 2}, {"tokens": 64, "survivors": 1}],
    }
    if searcher == "optuna":
        options["space"] = "depth_spline"
    for kind, (length, number) in {
        "calibration": (32, 4),
        "search": (16, 8),
        "final": (32, 4),
    }.items():
        options[f"data.{kind}_length"] = length
        options[f"data.{kind}_sequences"] = number
    for run in ("first", "second"):
        search(load_config(None, options), tmp_path / run)
    first, second = ((tmp_path / run / "profile.json").read_bytes() for run in ("first", "second"))
    assert first == second
