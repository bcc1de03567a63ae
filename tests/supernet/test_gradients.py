"""The hint of gradients, against the divergence itself with one gene moved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.files import SpaceFile
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.gradients import compute_gradient_hint
from sparsity_search.supernet.switch import Switch


def moved(space: SearchSpace, candidate: Candidate, gene: int, level: int) -> SparsityProfile:
    """The candidate with one gene elsewhere: out of budget, so no candidate itself."""
    levels = [level if g == gene else own for g, own in enumerate(candidate)]
    counts = [int(n) for g, own in enumerate(levels) for n in space.gene_counts(g, own)]
    return from_counts(space.layout, counts)


def log_probabilities(subject: PrunableModel, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return subject.model(input_ids=tokens).logits.double().log_softmax(-1)


def measured(
    space: SearchSpace, candidate: Candidate, switch: Switch, divergence: Callable[[], float]
) -> list[np.ndarray]:
    """What every level of every gene really changes."""

    def at(profile: SparsityProfile) -> float:
        switch.to(profile)
        return divergence()

    here = at(space.profile(candidate))
    return [
        np.array(
            [at(moved(space, candidate, gene, level)) - here for level in space.limits.of(gene)]
        )
        for gene in range(space.n_genes)
    ]


@pytest.fixture
def space(tiny_subject: PrunableModel) -> SearchSpace:
    """Steps so small that the second order is enough, and levels between those measured."""
    file = SpaceFile(version=1, description="x", gene=["name"], step=0.01, reach=4)
    return file.build(tiny_subject.layout, Budget(0.6), {})


@pytest.fixture
def known(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    space: SearchSpace,
    plan_of: Callable[..., SupernetDesign],
) -> tuple[Hint, list[np.ndarray], Candidate]:
    dense = log_probabilities(tiny_subject, tiny_tokens)
    divergence = DivergenceExpansion(tiny_subject, tiny_tokens, tiny_tokens.shape[1], 0)
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of())

    def true_divergence() -> float:
        found = log_probabilities(tiny_subject, tiny_tokens)
        return float((dense.exp() * (dense - found)).sum(-1).mean())

    candidate = space.nearest(from_counts(space.layout, space.base.removed))
    with supernet.resident() as switch:
        hint = compute_gradient_hint(space, candidate, switch, divergence)
        for unit, state in zip(space.layout, space.profile(candidate).states, strict=True):
            assert not switch.change(unit.name, *state).any(), "the model stays there"
        changes = measured(space, candidate, switch, true_divergence)
    return hint, changes, candidate


def test_the_present_levels_change_nothing(
    known: tuple[Hint, list[np.ndarray], Candidate],
) -> None:
    hint, _, candidate = known
    assert hint.of_genes(candidate) == pytest.approx(0.0, abs=1e-12)


def test_first_order(known: tuple[Hint, list[np.ndarray], Candidate]) -> None:
    """Half of what a gene's way up and its way down differ by is the slope: no second order."""
    hint, changes, candidate = known
    assert [len(losses) for losses in hint.losses] == [len(row) for row in changes]
    here = np.array(candidate) - hint.lower
    predicted, true = (
        np.array([row[i + 2] - row[i - 2] for row, i in zip(rows, here, strict=True)])
        for rows in (hint.losses, changes)
    )
    assert np.corrcoef(predicted, true)[0, 1] > 0.9
    assert 0.5 < np.polyfit(predicted, true, 1)[0] < 1.5


def test_it_ranks_single_moves(known: tuple[Hint, list[np.ndarray], Candidate]) -> None:
    """Levels that are interpolated among them; 160 tokens leave the second order noisy."""
    hint, changes, _ = known
    predicted, true = np.concatenate(hint.losses), np.concatenate(changes)
    assert kendalltau(predicted, true).statistic > 0.4
