from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.ria import RiaPruner
from sparsity_search.pruners.ria.permutation import METHODS, sum_retained
from sparsity_search.testing.pruner import (
    assert_exact,
    build_evidence,
    draw_correlated_inputs,
    draw_gaussian,
)

ROWS, COLUMNS = 8, 24
SIZE = ROWS * COLUMNS
WEIGHT, INPUTS = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(50, COLUMNS)
KNOWN = build_evidence(INPUTS, Statistic.NORM)
COUNTS = range(0, SIZE + 1, 7)
GROUPED = range(0, SIZE + 1, SIZE // 4)


def naive(weight: Tensor, inputs: Tensor, exponent: float) -> list[list[float]]:
    columns = [sum(abs(w) for w in column) for column in weight.T.tolist()]
    norms = [sum(x * x for x in column) ** (exponent / 2) for column in inputs.T.tolist()]
    scores = []
    for row in weight.tolist():
        total = sum(abs(w) for w in row)
        scores.append(
            [
                (abs(w) / c + abs(w) / total) * n if w else 0.0
                for w, c, n in zip(row, columns, norms, strict=True)
            ]
        )
    return scores


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_equals_the_naive_method(exponent: float) -> None:
    expected = torch.tensor(naive(WEIGHT, INPUTS, exponent), dtype=torch.float64)
    found = RiaPruner(exponent=exponent).score(WEIGHT, KNOWN).double()
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-5, atol=0)
    least = expected.flatten().argsort()[:90]
    pruned = RiaPruner(exponent=exponent).prune(WEIGHT, KNOWN, [90], seed=0).at(WEIGHT, 90)
    assert set((pruned == 0).flatten().nonzero().flatten().tolist()) == set(least.tolist())


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0], [1.0, 1.0]])
    known = build_evidence(torch.tensor([[4.0, 1.0]]), Statistic.NORM)
    assert RiaPruner().score(weight, known).tolist() == [[1.5, 1.5], [2.0, 0.75]]


def test_zero_rows_and_columns_count_as_nothing() -> None:
    weight = WEIGHT.clone()
    weight[2] = 0
    weight[:, 5] = 0
    score = RiaPruner().score(weight, KNOWN)
    assert score.isfinite().all()
    assert torch.equal(score == 0, weight == 0)
    expected = torch.tensor(naive(weight, INPUTS, 0.5))
    torch.testing.assert_close(score / score.sum(), expected / expected.sum())


def test_what_does_not_matter() -> None:
    def codes(pruner: RiaPruner, weight: Tensor = WEIGHT, inputs: Tensor = INPUTS) -> Tensor:
        return pruner.prune(weight, build_evidence(inputs, Statistic.NORM), COUNTS, seed=0).codes

    expected = codes(RiaPruner())
    assert torch.equal(codes(RiaPruner(), weight=WEIGHT * 8), expected)
    assert torch.equal(codes(RiaPruner(), inputs=INPUTS * 16), expected)
    relative = codes(RiaPruner(exponent=0.0))
    assert not torch.equal(relative, expected)
    assert torch.equal(
        codes(RiaPruner(exponent=0.0), inputs=INPUTS[:, torch.arange(23, -1, -1)]), relative
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["*:4", "2:4", "1:4"])
def test_groups_of_the_permuted_order(pattern: str, method: str) -> None:
    pruner = RiaPruner(pattern=pattern, permutation=method)
    counts = GROUPED if pattern[0] == "*" else [0, SIZE * (4 - int(pattern[0])) // 4]
    variants = pruner.prune(WEIGHT, KNOWN, counts, seed=0)
    assert_exact(variants, WEIGHT, counts)
    assert variants.codes.is_contiguous()
    order, score = pruner.input_order(WEIGHT, KNOWN), pruner.score(WEIGHT, KNOWN)
    for count in counts:
        removed = (variants.at(WEIGHT, count) == 0)[:, order].view(-1, 4)
        ranks = score[:, order].view(-1, 4).argsort(1).argsort(1)
        assert torch.equal(removed, ranks < count * 4 // SIZE)
    given = (
        (variants.at(WEIGHT, SIZE // 2) == 0).view(-1, 4).sum(1) if SIZE // 2 in counts else None
    )
    assert given is None or not (given == 2).all()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_permutations_keep_more(keep: int) -> None:
    count, kept = SIZE * (4 - keep) // 4, []
    for permutation in ("none", *METHODS):
        pruner = RiaPruner(pattern=f"{keep}:4", permutation=permutation)
        mask = pruner.prune(WEIGHT, KNOWN, [count], seed=0).at(WEIGHT, count) != 0
        kept.append(float(pruner.score(WEIGHT, KNOWN)[mask].double().sum()))
    assert kept[0] < kept[1] < kept[2]
    assert kept[0] == pytest.approx(sum_retained(RiaPruner().score(WEIGHT, KNOWN), keep, 4))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_suits_what_the_pattern_keeps(method: str) -> None:
    fixed = RiaPruner(pattern="2:4", permutation=method).input_order(WEIGHT, KNOWN)
    free = RiaPruner(pattern="*:4", permutation=method).input_order(WEIGHT, KNOWN)
    assert torch.equal(fixed, free)
    other = RiaPruner(pattern="3:4", permutation=method).input_order(WEIGHT, KNOWN)
    assert torch.equal(fixed, other) == (method == "heuristic")


@pytest.mark.parametrize("method", METHODS)
def test_permuted_groups_hold_with_zeros_and_ties(method: str) -> None:
    weight = (draw_gaussian(ROWS, COLUMNS) * 2).trunc()
    weight[2, :12] = 0
    existing = int((weight == 0).sum())
    counts = sorted({existing, *GROUPED})
    pruner = RiaPruner(pattern="*:4", permutation=method)
    variants = pruner.prune(weight, KNOWN, counts, seed=0)
    assert_exact(variants, weight, counts)
    order = pruner.input_order(weight, KNOWN)
    before = (weight[:, order].view(-1, 4) == 0).sum(1)
    for count in counts:
        if count > existing:
            groups = variants.at(weight, count)[:, order].view(-1, 4)
            each = count * 4 // SIZE
            assert ((groups == 0).sum(1) == each).all()
            # Zeros go first: those that stay, as the least number, are in groups with more.
            least = (groups == torch.finfo(torch.float32).tiny).sum(1)
            assert torch.equal(least, (before - each).clamp(min=0))


@pytest.mark.parametrize("method", METHODS)
def test_permuted_tables(method: str) -> None:
    pruner = RiaPruner(pattern="*:4", permutation=method)
    table = pruner.prune(WEIGHT, KNOWN, GROUPED, seed=0)
    for count in GROUPED:
        alone = pruner.prune(WEIGHT, KNOWN, [count], seed=5)
        assert torch.equal(alone.at(WEIGHT, count), table.at(WEIGHT, count))
    transposed = pruner.prune(WEIGHT.T.contiguous().T, KNOWN, GROUPED, seed=0)
    assert torch.equal(transposed.codes, table.codes)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"exponent": -0.5}, "exponent"),
        ({"exponent": float("nan")}, "exponent"),
        ({"exponent": float("inf")}, "exponent"),
        ({"permutation": "best"}, "permutation must be none, heuristic, assignment"),
        ({"permutation": "heuristic"}, "permutation needs an N:M pattern"),
        ({"permutation": "assignment", "pattern": "row"}, "permutation needs an N:M pattern"),
        ({"pattern": "column"}, "pattern"),
    ],
)
def test_illegal_settings(settings: dict[str, float | str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RiaPruner(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_errors_with_a_permutation(method: str) -> None:
    with pytest.raises(ConfigError, match="whole number of groups of 5"):
        RiaPruner(pattern="*:5", permutation=method).prune(WEIGHT, KNOWN, [0], seed=0)
    pruner = RiaPruner(pattern="2:4", permutation=method)
    with pytest.raises(ConfigError, match="2 kept in each group of 4"):
        pruner.prune(WEIGHT, KNOWN, [SIZE // 4], seed=0)
    with pytest.raises(ConfigError, match="counts"):
        pruner.prune(WEIGHT, KNOWN, [5, 4], seed=0)
    weight = WEIGHT.clone()
    weight[1, 1] = float("nan")
    with pytest.raises(NumericalError):
        pruner.prune(weight, KNOWN, [SIZE // 2], seed=0)
    with pytest.raises(ConfigError, match="permutation is none"):
        RiaPruner().input_order(WEIGHT, KNOWN)
