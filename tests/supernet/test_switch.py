from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import LinearView
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.registry import PRUNERS
from sparsity_search.spaces.files import SpaceFile
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.switch import Supernet
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from sparsity_search.utils.random import create_generator, derive_seed
from tests.helpers.names import OF_WEIGHTS

PlanOf = Callable[..., SupernetDesign]


@pytest.fixture
def supernet(tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf) -> Supernet:
    return build_supernet(tiny_subject, tiny_tokens, plan_of())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[LinearView]:
    """The views written to, in order."""
    views: list[LinearView] = []
    write = LinearView.write

    def spy(self: LinearView, weight: Tensor) -> None:
        views.append(self)
        write(self, weight)

    monkeypatch.setattr(LinearView, "write", spy)
    return views


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_switching_is_direct_pruning(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    profiles: list[SparsityProfile],
    name: str,
) -> None:
    pruner = PRUNERS.create(name)
    supernet = build_supernet(
        tiny_subject, tiny_tokens, plan_of(pruner, propagate="dense", seed=5)
    )
    gradient = pruner.needs_gradient
    visits = list(
        walk(tiny_subject, tiny_tokens, pruner.requires, rewritten=False, gradient=gradient)
    )
    known = {name: found for visit in visits for name, found in visit.evidence.items()}
    dense = {name: view.read().clone() for name, view in tiny_subject.views.items()}
    with supernet.resident() as switch:
        for profile in [*profiles, profiles[1]]:
            switch.to(profile)
            tiny_subject.verify(profile)
            for unit, count in zip(profile.layout, profile.removed, strict=True):
                expected = pruner.prune(
                    dense[unit.name],
                    known[unit.name],
                    [count],
                    seed=derive_seed(5, "ties", unit.name),
                ).at(dense[unit.name], count)
                assert torch.equal(tiny_subject.views[unit.name].read(), expected)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_dense_weights_return(
    supernet: Supernet, profiles: list[SparsityProfile], error: type[BaseException] | None
) -> None:
    model = supernet.subject.model
    before = copy_weights(model)

    def search() -> None:
        with supernet.resident() as switch:
            for profile in profiles:
                switch.to(profile)
            assert not all(torch.equal(w, before[n]) for n, w in copy_weights(model).items())
            if error:
                raise error

    if error:
        with pytest.raises(error):
            search()
    else:
        search()
    assert all(torch.equal(weight, before[n]) for n, weight in copy_weights(model).items())


def test_only_changed_units_are_written(
    supernet: Supernet, profiles: list[SparsityProfile], written: list[LinearView]
) -> None:
    views = list(supernet.subject.views.values())
    with supernet.resident() as switch:
        switch.to(profiles[0])
        assert written == views
        for last, profile in pairwise(profiles):
            written.clear()
            switch.to(profile)
            pairs = zip(views, last.removed, profile.removed, strict=True)
            assert written == [view for view, old, new in pairs if old != new]
            assert 0 < len(written) < len(views)
        written.clear()
        switch.to(profiles[-1])
        assert written == []


def test_order_of_profiles_does_not_matter(
    supernet: Supernet, profiles: list[SparsityProfile]
) -> None:
    def visit(order: list[SparsityProfile]) -> dict[str, dict[str, Tensor]]:
        found = {}
        with supernet.resident() as switch:
            for profile in order:
                switch.to(profile)
                found[profile.digest] = copy_weights(supernet.subject.model)
        return found

    there, back = visit(profiles), visit(profiles[::-1])
    for key, weights in there.items():
        assert all(torch.equal(weight, back[key][name]) for name, weight in weights.items())


def test_resident_twice(supernet: Supernet, profiles: list[SparsityProfile]) -> None:
    for profile in profiles[:2]:
        with supernet.resident() as switch:
            switch.to(profile)
            supernet.subject.verify(profile)


def test_a_profile_without_variants(supernet: Supernet, profiles: list[SparsityProfile]) -> None:
    odd = [count + 1 for count in profiles[0].removed]
    with supernet.resident() as switch, pytest.raises(UnknownNameError, match="no variant has"):
        switch.to(from_counts(supernet.subject.layout, odd))


def test_notes(supernet: Supernet) -> None:
    assert supernet.notes == []
    name = supernet.subject.layout[3].name
    variants = dict(supernet.variants)
    variants[name] = replace(variants[name], notes=("damping was raised",))
    assert Supernet(supernet.subject, variants).notes == [f"{name}: damping was raised"]


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_change_is_what_switching_adds(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    profiles: list[SparsityProfile],
    name: str,
) -> None:
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(PRUNERS.create(name)))
    with supernet.resident() as switch:
        switch.to(profiles[1])
        before = {name: view.read().clone() for name, view in tiny_subject.views.items()}
        changes = {
            unit.name: switch.change(unit.name, count)
            for unit, count in zip(profiles[2].layout, profiles[2].removed, strict=True)
        }
        assert all(torch.equal(v.read(), before[n]) for n, v in tiny_subject.views.items())
        switch.to(profiles[2])
        for name, view in tiny_subject.views.items():
            assert torch.equal(view.read() - before[name], changes[name])
        assert any(change.any() for change in changes.values())
        unit, count = profiles[2].layout[0].name, profiles[2].removed[0]
        assert not switch.change(unit, count).any()
        with pytest.raises(UnknownNameError, match="no variant has"):
            switch.change(unit, count + 1)


@pytest.fixture(params=["magnitude_sp", "flap"])  # the second changes consumers and adds biases
def structured(
    request: pytest.FixtureRequest, tiny_tokens: Tensor
) -> tuple[Supernet, list[SparsityProfile]]:
    """A supernet of channels and key-value groups; profiles of it, one of them dense."""
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=8)
    subject = PrunableModel(model, units="width")
    file = SpaceFile(version=1, description="x", gene=["name"], step=0.05, reach=4)
    space = file.build(subject.layout, Budget(0.4), {})
    tables = [(0, *(count for count in table if count)) for table in space.tables()]
    plan = SupernetDesign(pruner=PRUNERS.create(request.param), tables=tables, centre=space.base)
    rng = create_generator(0, "profiles")
    profiles = [space.base, *(space.profile(space.sample(rng, 2.0)) for _ in range(3))]
    dense = from_counts(subject.layout, [0] * len(subject.layout))
    return build_supernet(subject, tiny_tokens, plan), [*profiles, dense, profiles[1]]


def test_narrow_runs_smaller_matrices(
    structured: tuple[Supernet, list[SparsityProfile]], tiny_tokens: Tensor
) -> None:
    supernet, profiles = structured
    model, views = supernet.subject.model, supernet.subject.views

    @torch.inference_mode()
    def logits() -> Tensor:
        found: Tensor = model(input_ids=tiny_tokens).logits
        return found

    before = copy_weights(model)
    full = sum(weight.numel() for weight in before.values())
    with supernet.resident() as switch:
        for profile in profiles:
            switch.to(profile)
            read = {name: view.read().clone() for name, view in views.items()}
            unit, count = profile.layout[1].name, profiles[0].removed[1]
            zeros, change = logits(), switch.change(unit, count)
            with switch.narrow():
                size = sum(weight.numel() for weight in model.parameters())
                assert torch.allclose(logits(), zeros, rtol=1e-5, atol=1e-5)
            biases = sum(weight.numel() for weight in model.parameters()) - full
            padding = 7 * len(views) * max(u.cost for u in profile.layout if u.count == 64)
            assert 0 <= size - (full + biases - profile.n_removed) <= padding
            assert all(torch.equal(view.read(), read[name]) for name, view in views.items())
            assert torch.equal(switch.change(unit, count), change)
        switch.dense()
        with switch.narrow():
            assert all(torch.equal(w, before[n]) for n, w in copy_weights(model).items())
    assert all(torch.equal(weight, before[n]) for n, weight in copy_weights(model).items())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_dense_weights_return_from_narrow_ones(
    structured: tuple[Supernet, list[SparsityProfile]], error: type[BaseException]
) -> None:
    supernet, profiles = structured
    before = copy_weights(supernet.subject.model)

    def search() -> None:
        with supernet.resident() as switch:
            switch.to(profiles[1])
            with switch.narrow():
                raise error

    with pytest.raises(error):
        search()
    after = copy_weights(supernet.subject.model)
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[n]) for n, weight in after.items())
