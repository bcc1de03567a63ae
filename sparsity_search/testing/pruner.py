"""The rules that every pruner of single weights keeps, see `interfaces.pruner.Pruner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError, UnknownNameError
from sparsity_search.evidence.evidence import Evidence, WeightGradient
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.variants import Variants, variants_from_tensors
from sparsity_search.interfaces.pruner import Pruner

ROWS, COLUMNS = 16, 136
SIZE = ROWS * COLUMNS
COUNTS = (0, 1, 7, ROWS, SIZE // 3, SIZE // 2 + 3, SIZE - 5, SIZE - 1, SIZE)


def draw_gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers, independent of the global random state."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_correlated_inputs(n_tokens: int, columns: int, *, seed: int = 1) -> Tensor:
    """Return ``(n_tokens, columns)`` with neighbours correlated 0.9 and log-normal scales."""
    noise = draw_gaussian(n_tokens, columns, seed=seed)
    inputs = noise.clone()
    for j in range(1, columns):
        inputs[:, j] = 0.9 * inputs[:, j - 1] + (1 - 0.9**2) ** 0.5 * noise[:, j]
    return inputs * (0.7 * draw_gaussian(columns, seed=seed + 1)).exp()


def gather_statistics(inputs: Tensor, statistic: Statistic) -> InputStatistics:
    """Return the statistics of ``inputs``."""
    statistics = InputStatistics(inputs.shape[-1], statistic)
    statistics.add(inputs)
    return statistics


def build_evidence(
    inputs: Tensor, statistic: Statistic, gradient: WeightGradient | None = None
) -> Evidence:
    """Return evidence with the statistics of ``inputs``."""
    return Evidence(inputs=gather_statistics(inputs, statistic), gradient=gradient)


def build_gradient(rows: int, inputs: Tensor) -> WeightGradient:
    """Return the gradients of four sequences with random gradients of the outputs."""
    tokens = inputs[: len(inputs) // 4 * 4].reshape(4, -1, inputs.shape[-1])
    outputs = draw_gaussian(*tokens.shape[:2], rows, seed=9) / tokens.shape[1]
    each = outputs.mT @ tokens
    return WeightGradient(mean=each.mean(0), rms=each.square().mean(0).sqrt())


def assert_exact(variants: Variants, weight: Tensor, counts: Sequence[int]) -> None:
    """Assert that each variant is finite, of the weight's kind, and has its number of zeros."""
    existing = int((weight == 0).sum())
    for count in counts:
        pruned = variants.at(weight, count)
        assert pruned.shape == weight.shape
        assert pruned.dtype == weight.dtype
        assert pruned.isfinite().all()
        assert int((pruned == 0).sum()) == max(count, existing)
        if count <= existing:
            assert torch.equal(pruned, weight)


def set_group_pattern(pruner: Pruner, pattern: str) -> Pruner:
    """Return the pruner with an N:M pattern: its own, or that of its mask source."""
    if hasattr(pruner, "pattern"):
        return dataclasses.replace(pruner, pattern=pattern)  # type: ignore[call-arg]
    source = set_group_pattern(pruner.mask, pattern)  # type: ignore[attr-defined]
    return dataclasses.replace(pruner, mask=source)  # type: ignore[call-arg]


class PrunerContract:
    """Inherit in a test module that has a fixture ``pruner``."""

    def run(
        self,
        pruner: Pruner,
        weight: Tensor | None = None,
        inputs: Tensor | None = None,
        counts: Sequence[int] = COUNTS,
        seed: int = 0,
    ) -> Variants:
        """Prune with exactly the statistics that the pruner declares."""
        weight = draw_gaussian(ROWS, COLUMNS) if weight is None else weight
        inputs = draw_correlated_inputs(300, COLUMNS) if inputs is None else inputs
        gradient = build_gradient(len(weight), inputs) if pruner.needs_gradient else None
        known = build_evidence(inputs, pruner.requires, gradient)
        return pruner.prune(weight, known, counts, seed=seed)

    def test_is_a_value(self, pruner: Pruner) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert pruner == type(pruner)()
        assert hash(pruner) == hash(type(pruner)())
        assert "\n" not in repr(pruner)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_counts_are_exact(self, pruner: Pruner, dtype: torch.dtype) -> None:
        """Every count is met to the weight, from none to all, in every storage type."""
        weight = draw_gaussian(ROWS, COLUMNS).to(dtype)
        assert_exact(self.run(pruner, weight), weight, COUNTS)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_ties(self, pruner: Pruner, steps: int) -> None:
        """Counts stay exact if most weights are equal in size."""
        weight = (draw_gaussian(ROWS, COLUMNS) * steps).trunc() + 0.5
        assert_exact(self.run(pruner, weight), weight, COUNTS)

    @pytest.mark.parametrize("n_dead", [0, 40])
    def test_existing_zeros_go_first(self, pruner: Pruner, n_dead: int) -> None:
        """Zeros count as removed, wherever they are, and stay zero; even before dead inputs."""
        weight, inputs = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(300, COLUMNS)
        inputs[:, :n_dead] = 0
        weight[draw_gaussian(ROWS, COLUMNS, seed=5) > 0.8] = 0
        weight[3] = 0
        existing = int((weight == 0).sum())
        counts = sorted({*COUNTS, existing - 1, existing, existing + 1})
        variants = self.run(pruner, weight, inputs, counts)
        assert_exact(variants, weight, counts)
        for count in counts:
            assert (variants.at(weight, count)[weight == 0] == 0).all()

    def test_zero_weight(self, pruner: Pruner) -> None:
        """A weight of zeros stays as it is."""
        weight = torch.zeros(ROWS, COLUMNS)
        assert_exact(self.run(pruner, weight), weight, COUNTS)

    def test_dead_inputs(self, pruner: Pruner) -> None:
        """Inputs that are always zero do no harm, nor if that is all of them."""
        weight, inputs = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(300, COLUMNS)
        inputs[:, ::3] = 0
        assert_exact(self.run(pruner, weight, inputs), weight, COUNTS)
        assert_exact(self.run(pruner, weight, inputs * 0), weight, COUNTS)

    def test_singular_statistics(self, pruner: Pruner) -> None:
        """Fewer tokens than inputs, and inputs that are copies of each other, do no harm."""
        weight, inputs = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(5, COLUMNS)
        inputs[:, 1::2] = inputs[:, ::2]
        assert_exact(self.run(pruner, weight, inputs), weight, COUNTS)

    def test_memory_layout(self, pruner: Pruner) -> None:
        """A transposed view gives what a contiguous weight gives."""
        weight = draw_gaussian(COLUMNS, ROWS).T
        strided, plain = self.run(pruner, weight), self.run(pruner, weight.contiguous())
        self.assert_same(strided, plain, weight)

    def test_weight_is_not_modified(self, pruner: Pruner) -> None:
        """Neither pruning nor taking variants writes to the dense weight."""
        weight = draw_gaussian(ROWS, COLUMNS)
        before = weight.clone()
        variants = self.run(pruner, weight)
        for count in COUNTS:
            variants.at(weight, count).fill_(9.0)
        assert torch.equal(weight, before)
        assert_exact(variants, weight, COUNTS)

    def test_updates_what_it_says(self, pruner: Pruner) -> None:
        """Kept weights change if, and only if, the pruner says so."""
        weight = draw_gaussian(ROWS, COLUMNS)
        pruned = self.run(pruner, weight, counts=[SIZE // 2]).at(weight, SIZE // 2)
        kept = pruned != 0
        assert torch.equal(pruned[kept], weight[kept]) != pruner.updates

    def test_deterministic(self, pruner: Pruner) -> None:
        """Equal seeds give equal bits, and the global random state is neither used nor moved."""
        weight = draw_gaussian(ROWS, COLUMNS).round() + 0.5
        state = torch.get_rng_state()
        first = self.run(pruner, weight, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.random.fork_rng(devices=[]):
            torch.rand(7)
            second = self.run(pruner, weight, seed=3)
        for count in COUNTS:
            assert torch.equal(first.at(weight, count), second.at(weight, count))

    def test_seed_decides_ties_only(self, pruner: Pruner) -> None:
        """Where no two scores are equal, the seed has no effect."""
        weight = draw_gaussian(ROWS, COLUMNS)
        self.assert_same(self.run(pruner, seed=1), self.run(pruner, seed=2), weight)

    def test_counts_are_independent(self, pruner: Pruner) -> None:
        """A count gives the same variant alone as in a table."""
        weight, together = draw_gaussian(ROWS, COLUMNS), self.run(pruner)
        for count in COUNTS:
            alone = self.run(pruner, counts=[count])
            self.assert_same(together, alone, weight, [count])

    def test_scale_of_inputs(self, pruner: Pruner) -> None:
        """Inputs times a constant change nothing."""
        inputs = draw_correlated_inputs(300, COLUMNS)
        scaled = self.run(pruner, inputs=inputs * 3)
        self.assert_same(self.run(pruner, inputs=inputs), scaled, draw_gaussian(ROWS, COLUMNS))

    def test_round_trip(self, pruner: Pruner) -> None:
        """Stored variants are the same when they are read."""
        variants = self.run(pruner)
        read = variants_from_tensors(variants.kind, variants.counts, variants.tensors())
        for count in COUNTS:
            dense = draw_gaussian(ROWS, COLUMNS)
            assert torch.equal(read.at(dense, count), variants.at(dense, count))

    @pytest.mark.parametrize("group", [4, 8])
    def test_groups(self, pruner: Pruner, group: int) -> None:
        """In an N:M pattern every group has its zeros exactly, with ties and groups of zeros."""
        weight = (draw_gaussian(ROWS, COLUMNS) * 3).trunc()
        weight[2, :24] = 0
        existing, n_groups = int((weight == 0).sum()), SIZE // group
        counts = sorted({0, existing, *range(n_groups, SIZE + 1, n_groups)})
        variants = self.run(set_group_pattern(pruner, f"*:{group}"), weight, counts=counts)
        assert_exact(variants, weight, counts)
        for count in counts:
            if count > existing:
                zeros = (variants.at(weight, count).view(-1, group) == 0).sum(1)
                assert (zeros == count // n_groups).all()

    def test_fixed_groups(self, pruner: Pruner) -> None:
        """``2:4`` is that or dense, and nothing else; the inputs must be whole groups."""
        weight = draw_gaussian(ROWS, COLUMNS)
        fixed = set_group_pattern(pruner, "2:4")
        assert_exact(self.run(fixed, counts=[0, SIZE // 2]), weight, [0, SIZE // 2])
        for count in (SIZE // 4, SIZE // 2 + 1):
            with pytest.raises(ConfigError):
                self.run(fixed, counts=[count])
        with pytest.raises(ConfigError):
            self.run(set_group_pattern(pruner, "*:5"), counts=[SIZE // 5])

    @pytest.mark.parametrize("counts", [[-1], [3, 3], [5, 4], [SIZE + 1]])
    def test_illegal_counts(self, pruner: Pruner, counts: list[int]) -> None:
        """A table that is not increasing, or leaves the weight's size, is refused."""
        with pytest.raises(ConfigError):
            self.run(pruner, counts=counts)

    def test_unknown_count(self, pruner: Pruner) -> None:
        """A count that is not in the table is an error."""
        with pytest.raises(UnknownNameError):
            self.run(pruner).at(draw_gaussian(ROWS, COLUMNS), 2)

    @pytest.mark.parametrize("counts", [COUNTS, [SIZE]])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_finite(self, pruner: Pruner, bad: float, counts: Sequence[int]) -> None:
        """NaN or Inf in weight or inputs is an error, never a result."""
        weight, inputs = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(300, COLUMNS)
        weight[2, 3] = bad
        with pytest.raises(NumericalError):
            self.run(pruner, weight, counts=counts)
        if pruner.requires > Statistic.NONE:
            inputs[4, 5] = bad
            with pytest.raises(NumericalError):
                self.run(pruner, inputs=inputs, counts=counts)

    def assert_same(
        self, first: Variants, second: Variants, dense: Tensor, counts: Sequence[int] = COUNTS
    ) -> None:
        """Assert equal masks, and weights equal up to float32 rounding."""
        for count in counts:
            one, other = first.at(dense, count), second.at(dense, count)
            assert torch.equal(one == 0, other == 0)
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
