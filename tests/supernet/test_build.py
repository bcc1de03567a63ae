from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.testing.allocator import assert_unchanged
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from sparsity_search.utils.random import derive_seed
from tests.helpers.names import OF_WEIGHTS

PlanOf = Callable[..., SupernetDesign]


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_the_centre_is_sequential_pruning(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    space: SearchSpace,
    name: str,
) -> None:
    pruner = PRUNERS.create(name)
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(pruner, seed=3))
    with supernet.resident() as switch:
        switch.to(space.base)
        found = copy_weights(tiny_subject.model)
    other = PrunableModel(tiny_llama())
    prune_sequentially(other, space.base, pruner, tiny_tokens, seed=3)
    expected = copy_weights(other.model)
    assert all(torch.equal(weight, expected[key]) for key, weight in found.items())


def test_propagation_matters(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    profiles: list[SparsityProfile],
) -> None:
    found = []
    for propagate in ("centre", "dense"):
        supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(propagate=propagate))
        with supernet.resident() as switch:
            switch.to(profiles[0])
            found.append(copy_weights(tiny_subject.model))
    differ = {name for name, weight in found[0].items() if not torch.equal(weight, found[1][name])}
    assert differ
    # the first linears of block 0 read the embeddings in both
    assert not any(name.startswith("model.layers.0.self_attn.q") for name in differ)
    assert any(name.startswith("model.layers.2.mlp.up") for name in differ)


@pytest.mark.parametrize("propagate", ["expectation", "mean"])
def test_later_blocks_see_the_mean_of_all_outputs(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf, propagate: str
) -> None:
    """The last block's masks are those made on inputs mixed by hand, in float64."""
    plan = plan_of(propagate=propagate, refresh="block")
    variants = build_supernet(tiny_subject, tiny_tokens, plan).variants
    layout = tiny_subject.layout
    with tiny_subject.preserved() as dense:
        for unit, table in zip(layout, plan.tables, strict=True):
            if unit.block == 2:
                continue
            each = torch.stack([variants[unit.name].at(dense[unit.name], c) for c in table])
            kept = torch.tensor([1 - c / unit.count for c in table], dtype=torch.float64)
            share = kept / kept.sum() if propagate == "expectation" else torch.ones_like(kept)
            mixed = torch.einsum("v,vrc->rc", share / share.sum(), each.double())
            tiny_subject.views[unit.name].write(mixed.float())
        last = list(walk(tiny_subject, tiny_tokens, Statistic.NORM, rewritten=False))
        for unit in last[2].units:
            position = layout.position(unit.name)
            expected = plan.pruner.prune(
                dense[unit.name],
                last[2].evidence[unit.name],
                plan.tables[position],
                seed=derive_seed(plan.seed, "ties", unit.name),
            )
            for count in plan.tables[position]:
                same = expected.at(dense[unit.name], count) == variants[unit.name].at(
                    dense[unit.name], count
                )
                assert same.float().mean() > 0.999


def test_expectation_prefers_what_keeps_more(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf
) -> None:
    """The first block's statistics are the same, later ones lie between mean and dense."""
    found = {}
    for propagate in ("dense", "expectation", "mean"):
        plan = plan_of(propagate=propagate, refresh="block")
        variants = build_supernet(tiny_subject, tiny_tokens, plan).variants
        found[propagate] = {name: v.tensors()["codes"].int() for name, v in variants.items()}

    def apart(first: str, second: str, block: int) -> int:
        return sum(
            int((found[first][u.name] != found[second][u.name]).sum())
            for u in tiny_subject.layout
            if u.block == block
        )

    assert apart("dense", "expectation", 0) == apart("dense", "mean", 0) == 0
    assert 0 < apart("dense", "expectation", 2) < apart("dense", "mean", 2)


@pytest.mark.parametrize("propagate", ["centre", "dense", "expectation", "mean"])
def test_the_model_is_unchanged(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf, propagate: str
) -> None:
    before, blocks = copy_weights(tiny_subject.model), []
    build_supernet(tiny_subject, tiny_tokens, plan_of(propagate=propagate), on_block=blocks.append)
    assert blocks == [0, 1, 2]
    assert_unchanged(tiny_subject.model, before)


def test_the_model_is_unchanged_after_an_error(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf
) -> None:
    before = copy_weights(tiny_subject.model)

    def interrupt(block: int) -> None:
        if block == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_supernet(tiny_subject, tiny_tokens, plan_of(), on_block=interrupt)
    assert_unchanged(tiny_subject.model, before)


def test_every_count_of_the_tables_has_a_variant(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf, space: SearchSpace
) -> None:
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of())
    assert list(supernet.variants) == [unit.name for unit in tiny_subject.layout]
    for unit, table in zip(tiny_subject.layout, space.tables(), strict=True):
        variants = supernet.variants[unit.name]
        assert variants.counts == table
        dense = tiny_subject.views[unit.name].read()
        for count in table:
            assert int((variants.at(dense, count) == 0).sum()) == count


def test_seed_breaks_ties(tiny_tokens: Tensor, plan_of: PlanOf) -> None:
    model = tiny_llama()
    subject = PrunableModel(model)
    for view in subject.views.values():
        view.write(view.read().sign())
    magnitude = PRUNERS.create("magnitude")
    found = []
    for seed in (0, 0, 1):
        supernet = build_supernet(subject, tiny_tokens, plan_of(magnitude, seed=seed))
        codes = [variants.tensors()["codes"] for variants in supernet.variants.values()]
        found.append(torch.cat([part.flatten() for part in codes]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    # units of one size do not share their tie breaks
    up, gate = (supernet.variants[f"model.layers.0.mlp.{n}_proj"] for n in ("up", "gate"))
    assert not torch.equal(up.tensors()["codes"], gate.tensors()["codes"])


def test_a_complete_folder_needs_no_text(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf, tmp_path: Path
) -> None:
    build_supernet(tiny_subject, tiny_tokens, plan_of(), SupernetFolder(tmp_path, {}))
    tiny_subject.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    build_supernet(tiny_subject, tiny_tokens, plan_of(), SupernetFolder(tmp_path, {}))


@pytest.mark.parametrize(
    ("refresh", "same", "other"),
    [("sublayer", "self_attn", "mlp"), ("layer", "self_attn.q", "self_attn.o")],
)
@pytest.mark.parametrize("propagate", ["centre", "expectation"])
def test_only_what_follows_the_first_part_differs(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    propagate: str,
    refresh: str,
    same: str,
    other: str,
) -> None:
    found = []
    for each in ("block", refresh):
        plan = plan_of(propagate=propagate, refresh=each)
        supernet = build_supernet(tiny_subject, tiny_tokens, plan)
        with supernet.resident() as switch:
            switch.to(plan_of().centre)
            found.append(copy_weights(tiny_subject.model))
    differ = {name for name, weight in found[0].items() if not torch.equal(weight, found[1][name])}
    assert not any(name.startswith(f"model.layers.0.{same}") for name in differ)
    assert any(name.startswith(f"model.layers.0.{other}") for name in differ)


@pytest.mark.parametrize("refresh", ["sublayer", "layer"])
def test_by_parts_a_stopped_build_goes_on(
    refresh: str,
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    profiles: list[SparsityProfile],
    tmp_path: Path,
) -> None:
    plan = plan_of(refresh=refresh)

    def stop(block: int) -> None:
        if block == 1:
            raise KeyboardInterrupt

    folder = SupernetFolder(tmp_path / "supernet", {})
    with pytest.raises(KeyboardInterrupt):
        build_supernet(tiny_subject, tiny_tokens, plan, folder, stop)
    found = []
    for where in (SupernetFolder(tmp_path / "supernet", {}), None):
        blocks: list[int] = []
        supernet = build_supernet(tiny_subject, tiny_tokens, plan, where, blocks.append)
        assert blocks == [0, 1, 2]
        with supernet.resident() as switch:
            switch.to(profiles[1])
            found.append(copy_weights(tiny_subject.model))
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
