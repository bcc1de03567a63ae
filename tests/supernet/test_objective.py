from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.evaluators.perplexity import PerplexityEvaluator
from sparsity_search.interfaces.evaluator import Proxy
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.wanda_sp import WandaSPPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.objective import SupernetObjective
from sparsity_search.testing.models import tiny_llama
from sparsity_search.trials.history import Fidelity, Score

LENGTH, N_ROWS = 16, 10


class Spy(Proxy):
    """A proxy and a switch at once: notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def to(self, profile: SparsityProfile) -> None:
        self.calls.append(profile)

    def narrow(self) -> AbstractContextManager[None]:
        return nullcontext()

    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        self.calls.append((model, list(rows)))
        return Score(float(len(self.calls)), ())


def objective(spy: Any = None, seed: int = 0) -> SupernetObjective:
    spy = spy or Spy()
    return SupernetObjective(PrefixCache(SUBJECT, 0), spy, spy, (N_ROWS, LENGTH), seed)


SUBJECT = PrunableModel(tiny_llama())
PROFILES = [Budget(target).uniform(SUBJECT.layout) for target in (0.3, 0.9, 0.6)]


def test_rows_of_rungs_nest() -> None:
    rows = [objective().rows(Fidelity(LENGTH * n)) for n in range(1, N_ROWS + 1)]
    for n, (cheap, dear) in enumerate(pairwise(rows), start=1):
        assert len(cheap) == n
        assert dear[:n] == cheap
    assert sorted(rows[-1]) == list(range(N_ROWS))


def test_rows_depend_on_subset_and_seed_alone() -> None:
    draws = [
        objective(seed=seed).rows(Fidelity(LENGTH * N_ROWS, subset))
        for seed in (0, 1)
        for subset in (0, 1)
    ]
    assert len({tuple(draw) for draw in draws}) == 4
    assert objective().rows(Fidelity(LENGTH * N_ROWS)) == draws[0]


@pytest.mark.parametrize(("tokens", "n_rows"), [(16, 1), (31, 1), (32, 2), (160, 10), (175, 10)])
def test_tokens_are_rounded_down_to_sequences(tokens: int, n_rows: int) -> None:
    assert len(objective().rows(Fidelity(tokens))) == n_rows


@pytest.mark.parametrize("tokens", [1, 15, 176, 4096])
def test_a_rung_the_pool_cannot_serve(tokens: int) -> None:
    spy = Spy()
    with pytest.raises(ConfigError, match=rf"{tokens} tokens needs 1 to 10 sequences of 16"):
        objective(spy)(PROFILES[0], Fidelity(tokens))
    assert spy.calls == []


def test_the_model_is_switched_before_it_is_scored() -> None:
    spy = Spy()
    rows = objective().rows(Fidelity(32))
    assert objective(spy)(PROFILES[0], Fidelity(32)).value == 2.0
    assert spy.calls == [PROFILES[0], (SUBJECT.model, rows)]


def test_known_rows_are_not_run_again() -> None:
    spy = Spy()
    rows = objective().rows(Fidelity(64))
    found = objective(spy)(PROFILES[0], Fidelity(64), Score(1.5, (1.0, 2.0)))
    assert spy.calls == [PROFILES[0], (SUBJECT.model, rows[2:])]
    assert found == Score(1.5, (1.0, 2.0))


def test_scores_are_those_of_pruned_models(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    profiles = PROFILES
    tables = [tuple(sorted(counts)) for counts in zip(*(p.removed for p in profiles), strict=True)]
    plan = SupernetDesign(pruner=MagnitudePruner(), tables=tables, centre=profiles[0])
    supernet = build_supernet(subject, tiny_tokens, plan)
    proxy = PerplexityEvaluator().bind(subject.model, tiny_tokens)
    with supernet.resident() as switch:
        prefixes = PrefixCache(subject, 2**20)
        objective = SupernetObjective(prefixes, switch, proxy, (N_ROWS, LENGTH), 0)
        rows = objective.rows(Fidelity(80))
        found = [objective(profile, Fidelity(80)) for profile in profiles]
        for profile, whole in zip(profiles, found, strict=True):
            known = objective(profile, Fidelity(32))
            again = objective(profile, Fidelity(80), known)
            assert again.value == pytest.approx(whole.value, rel=1e-5)
            assert again.parts[:2] == known.parts
    for profile, score in zip(profiles, found, strict=True):
        other = PrunableModel(tiny_llama())
        prune_sequentially(
            other, profile, MagnitudePruner(), tiny_tokens
        )  # magnitude needs no inputs
        assert score == proxy.score(other.model, rows)
        assert len(score.parts) == 5
    assert torch.equal(subject.views["model.layers.0.mlp.up_proj"].read(),
                       tiny_llama().model.layers[0].mlp.up_proj.weight)  # fmt: skip


class Watched(Proxy):
    """A proxy that notes how many weights the model has while it is scored."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.sizes: list[int] = []

    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        self.sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        return self.proxy.score(model, rows)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_structures_are_scored_without_what_is_removed(tiny_tokens: Tensor, memory: int) -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    counts = [[1 if unit.count == 2 else 8 * n for unit in subject.layout] for n in (4, 5)]
    counts.append([*counts[0][:-1], 16])  # begins as the first one does
    profiles = [from_counts(subject.layout, each) for each in counts]
    tables = [tuple(sorted({*table})) for table in zip(*counts, strict=True)]
    plan = SupernetDesign(pruner=WandaSPPruner(), tables=tables, centre=profiles[0])
    supernet = build_supernet(subject, tiny_tokens, plan)
    watched = Watched(PerplexityEvaluator().bind(subject.model, tiny_tokens))
    full = sum(parameter.numel() for parameter in subject.model.parameters())
    with supernet.resident() as switch:
        prefixes = PrefixCache(subject, memory)
        objective = SupernetObjective(prefixes, switch, watched, (N_ROWS, LENGTH), 0)
        rows = objective.rows(Fidelity(80))
        for profile in [profiles[0], profiles[2], profiles[1], profiles[0]]:
            found = objective(profile, Fidelity(80))
            assert watched.sizes.pop() == full - profile.n_removed
            zeros = watched.proxy.score(subject.model, rows)
            assert found.value == pytest.approx(zeros.value, rel=1e-6)
            assert found.parts == pytest.approx(zeros.parts, rel=1e-6)
