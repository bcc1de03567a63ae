from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence, Routing
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.stun import STUNPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_mixtral
from sparsity_search.testing.pruner import draw_gaussian

N, HIDDEN = 7, 4
SHAPE = StructureLayout(count=N, inner=2, width=7, biases=0, routing=1)
Clusters = list[list[int]]


def unit(seed: int = 0) -> Tensor:
    return draw_gaussian(HIDDEN, N * SHAPE.width, seed=seed)


def together(seed: int = 0) -> Tensor:
    """Random symmetric counts, zero on the diagonal."""
    found = (40 * draw_gaussian(N, N, seed=seed + 90).abs()).long().triu(1)
    return found + found.T


def known(counts: Tensor) -> Evidence:
    routing = Routing(tokens=counts.sum(1), saliency=torch.zeros(N), coactivation=counts)
    return Evidence(
        inputs=InputStatistics(SHAPE.count * SHAPE.inner, Statistic.NONE),
        structures=SHAPE,
        routing=routing,
    )


def pruned(weight: Tensor, counts: Tensor, pruner: STUNPruner, *, seed: int = 0) -> list[Tensor]:
    variants = pruner.prune(weight, known(counts), range(N + 1), seed=seed)
    return [variants.at(weight, count) for count in range(N + 1)]


def apart(weight: Tensor, counts: Tensor, pruner: STUNPruner) -> dict[tuple[int, int], float]:
    """Distances, pair by pair."""
    rows = SHAPE.bodies(weight)[:, :, -1].T.double()
    pairs = list(itertools.combinations(range(N), 2))
    mean = sum(int(counts[i, j]) for i, j in pairs) / len(pairs)
    found = {}
    for i, j in pairs:
        term = -int(counts[i, j]) / mean if pruner.coactivation else 0.0
        found[i, j] = term + pruner.mix_weight * float((rows[i] - rows[j]).norm())
    return found


def brute_force(distance: dict[tuple[int, int], float]) -> list[Clusters]:
    """Complete linkage from its definition."""
    clusters = [[i] for i in range(N)]
    cuts = [clusters]

    def farthest(pair: tuple[list[int], list[int]]) -> float:
        return max(distance[min(i, j), max(i, j)] for i in pair[0] for j in pair[1])

    while len(clusters) > 1:
        one, other = min(itertools.combinations(clusters, 2), key=farthest)
        clusters = [c for c in clusters if c not in (one, other)] + [one + other]
        cuts.append(clusters)
    return cuts


def check(weight: Tensor, made: Tensor, clusters: Clusters, *, average: bool) -> None:
    """Assert that a matrix holds one expert a cluster: a mean, or the one closest to it."""
    old, new = SHAPE.bodies(weight), SHAPE.bodies(made)
    for members in clusters:
        (kept,) = [i for i in members if new[:, i].any()]
        mean = old[:, members].double().mean(1)
        if average and len(members) > 1:
            assert_close(new[:, kept].double(), mean, rtol=1e-5, atol=1e-6)
            continue
        away = {i: float((old[:, i].double() - mean)[:, :-1].norm()) for i in members}
        assert away[kept] == pytest.approx(min(away.values()), rel=1e-5)
        assert torch.equal(new[:, kept], old[:, kept])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "pruner",
    [
        STUNPruner(),
        STUNPruner(mix_weight=0.2, merge_max_clusters=0),
        STUNPruner(coactivation=False, mix_weight=3.0),
    ],
)
def test_equals_brute_force(seed: int, pruner: STUNPruner) -> None:
    weight, counts = unit(seed), together(seed)
    cuts = brute_force(apart(weight, counts, pruner))
    made = pruned(weight, counts, pruner)
    for clusters in cuts:
        average = len(clusters) <= pruner.merge_max_clusters
        check(weight, made[N - len(clusters)], clusters, average=average)
    assert not made[N].any()


def test_coactivation_matters() -> None:
    weight, counts = unit(), torch.zeros(N, N, dtype=torch.int64)
    SHAPE.bodies(weight)[0, 2, -1] = 5.0  # far from the others
    counts[2, 5] = counts[5, 2] = 1000
    made = pruned(weight, counts, STUNPruner())[1]
    assert SHAPE.empty(made)[[2, 5]].sum() == 1
    without = pruned(weight, counts, STUNPruner(coactivation=False))[1]
    assert SHAPE.empty(without)[[2, 5]].sum() == 0


def test_no_coactivation_at_all() -> None:
    """One expert a token: the router's rows decide alone."""
    weight, counts = unit(), torch.zeros(N, N, dtype=torch.int64)
    one, other = (
        pruned(weight, counts, STUNPruner()),
        pruned(weight, counts, STUNPruner(coactivation=False)),
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_empty_experts_go_first() -> None:
    weight, counts = unit(), together()
    SHAPE.bodies(weight)[:, [1, 4]] = 0
    made = pruned(weight, counts, STUNPruner())
    assert all(torch.equal(made[count], weight) for count in range(3))
    live = [0, 2, 3, 5, 6]
    distance = {
        pair: value + (0 if set(pair) <= set(live) else 1e9)
        for pair, value in apart(weight, counts, STUNPruner()).items()
    }
    mean = counts[live][:, live].sum() / 20  # the mean is that of the live ones
    for i, j in itertools.combinations(live, 2):
        rows = SHAPE.bodies(weight)[:, [i, j], -1].double()
        distance[i, j] = float((rows[:, 0] - rows[:, 1]).norm() - counts[i, j] / mean)
    for clusters in brute_force(distance)[:4]:
        alive = [members for members in clusters if set(members) <= set(live)]
        check(weight, made[N - len(alive)], alive, average=len(alive) <= 2)


def test_averages_only_where_few_clusters_are_left() -> None:
    weight, counts = unit(), together()
    for most in (0, 1, 3, N):
        made = pruned(weight, counts, STUNPruner(merge_max_clusters=most))
        columns = {tuple(body.flatten().tolist()) for body in SHAPE.bodies(weight).unbind(1)}
        for count in range(1, N):
            bodies = SHAPE.bodies(made[count])[:, ~SHAPE.empty(made[count])].unbind(1)
            copied = {tuple(body.flatten().tolist()) for body in bodies} <= columns
            assert copied == (N - count > most)


def test_experts_that_cancel_are_not_averaged() -> None:
    weight = torch.zeros(HIDDEN, N * SHAPE.width)
    bodies = SHAPE.bodies(weight)
    bodies[:, 0] = draw_gaussian(HIDDEN, SHAPE.width)
    bodies[:, 1] = -bodies[:, 0]
    made = pruned(weight, together() * 0, STUNPruner())
    assert int((~SHAPE.empty(made[N - 1])).sum()) == 1


def test_copies_become_one() -> None:
    """Where experts are copies in pairs, removing half of them loses nothing."""
    model = tiny_mixtral(num_experts_per_tok=1)
    for layer in model.model.layers:
        for parameter in (*layer.mlp.experts.parameters(), layer.mlp.gate.weight):
            parameter[4:] = parameter[:4]
    tokens = draw_random_tokens(4, 12)
    before = model(input_ids=tokens).logits
    subject = PrunableModel(model, units="experts")
    prune_sequentially(subject, Budget(0.5).uniform(subject.layout), STUNPruner(), tokens)
    assert [len(layer.mlp.gate.weight) for layer in model.model.layers] == [4, 4]
    assert_close(model(input_ids=tokens).logits, before, rtol=1e-5, atol=1e-5)


def test_seed_decides_between_equal_distances() -> None:
    weight = torch.ones_like(unit()) + torch.arange(N).repeat_interleave(SHAPE.width)
    SHAPE.bodies(weight)[:, :, -1] = 1.0
    counts = torch.ones(N, N, dtype=torch.int64) - torch.eye(N, dtype=torch.int64)
    found = {
        tuple(SHAPE.empty(pruned(weight, counts, STUNPruner(), seed=seed)[2]).tolist())
        for seed in range(8)
    }
    assert len(found) > 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"mix_weight": -1.0}, "mix_weight"),
        ({"mix_weight": float("nan")}, "mix_weight"),
        ({"mix_weight": 0.0, "coactivation": False}, "mix_weight"),
        ({"merge_max_clusters": -1}, "merge_max_clusters"),
    ],
)
def test_bad_settings(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        STUNPruner(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0.25, 0.5, 0.75])
def test_models(target: float, tmp_path: Path) -> None:
    tokens = draw_random_tokens(9, 12)
    subject = PrunableModel(tiny_mixtral(), units="experts")
    profile = Budget(target).uniform(subject.layout)
    prune_sequentially(subject, profile, STUNPruner(), tokens)
    subject.verify(profile)
    prepare_for_saving(subject).save_pretrained(tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert loaded.config.num_local_experts == round(8 * (1 - target))
    with torch.inference_mode():
        one, two = (m(input_ids=tokens, use_cache=False).logits for m in (loaded, subject.model))
    assert torch.equal(one, two)
