"""The rules that every pruner of structures keeps, see `interfaces.pruner.Pruner`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence, Routing
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.evidence.variants import StructuredVariants, Variants, variants_from_tensors
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.testing.pruner import (
    build_gradient,
    draw_correlated_inputs,
    draw_gaussian,
    gather_statistics,
)

HIDDEN = 12


def build_shape(pruner: Pruner) -> StructureLayout:
    """Return a small shape of the pruner's usual kind: many structures, or one whole sublayer."""
    if "experts" in pruner.units:
        return StructureLayout(count=10, inner=4, width=13, biases=0, routing=1)
    many = "width" in pruner.units
    return (
        StructureLayout(count=10, inner=4, width=9)
        if many
        else StructureLayout(1, 8, 30, biases=1)
    )


def draw_matrix(pruner: Pruner, seed: int = 0) -> Tensor:
    """Return a random unit of that shape, with a bias."""
    shape = build_shape(pruner)
    return draw_gaussian(HIDDEN, shape.count * shape.width + shape.biases, seed=seed)


def build_routing(inputs: Tensor, shape: StructureLayout) -> Routing:
    """Return a routing to those two structures whose inputs are largest."""
    size = inputs.view(len(inputs), shape.count, shape.inner).norm(dim=2)
    top, index = size.topk(2, dim=1)
    chosen = torch.zeros_like(size).scatter_(1, index, 1.0)
    together = (chosen.T @ chosen).long()
    tokens = together.diagonal()
    saliency = torch.zeros_like(size).scatter_(1, index, top).sum(dim=0) / tokens.clamp_min(1)
    return Routing(tokens=tokens, saliency=saliency, coactivation=together - tokens.diag())


class StructuredPrunerContract:
    """Inherit in a test module that has a fixture ``pruner``."""

    def run(
        self,
        pruner: Pruner,
        weight: Tensor | None = None,
        inputs: Tensor | None = None,
        counts: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Variants:
        """Prune with exactly the evidence that the pruner declares."""
        shape = build_shape(pruner)
        weight = draw_matrix(pruner) if weight is None else weight
        inputs = (
            draw_correlated_inputs(300, shape.count * shape.inner) if inputs is None else inputs
        )
        gradient = None
        if pruner.needs_gradient:
            # the gradient of every column is as if its input were one of the consumer's
            wide = inputs.repeat(1, weight.shape[1] // inputs.shape[1] + 1)[:, : weight.shape[1]]
            gradient = build_gradient(len(weight), wide)
        evidence = Evidence(
            inputs=gather_statistics(inputs, pruner.requires),
            gradient=gradient,
            structures=shape,
            routing=build_routing(inputs, shape) if "experts" in pruner.units else None,
        )
        counts = range(shape.count + 1) if counts is None else counts
        return pruner.prune(weight, evidence, counts, seed=seed)

    def assert_exact(self, pruner: Pruner, variants: Variants, weight: Tensor) -> None:
        """Assert that each variant is finite and has its number of empty structures."""
        shape = build_shape(pruner)
        existing = int(shape.empty(weight).sum())
        for count in variants.counts:
            pruned = variants.at(weight, count)
            assert pruned.shape == weight.shape
            assert pruned.dtype == weight.dtype
            assert pruned.isfinite().all()
            assert int(shape.empty(pruned).sum()) == max(count, existing)
            if count <= existing:
                assert torch.equal(pruned, weight)

    def test_is_a_value(self, pruner: Pruner) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert pruner == type(pruner)()
        assert hash(pruner) == hash(type(pruner)())
        assert "\n" not in repr(pruner)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_counts_are_exact(self, pruner: Pruner, dtype: torch.dtype) -> None:
        """Every count is met, from none to all, in every storage type."""
        weight = draw_matrix(pruner).to(dtype)
        self.assert_exact(pruner, self.run(pruner, weight), weight)

    def test_updates_what_it_says(self, pruner: Pruner) -> None:
        """The consumer's kept weights change if, and only if, the pruner says so."""
        weight, shape = draw_matrix(pruner), build_shape(pruner)
        variants = self.run(pruner, weight)
        if not isinstance(variants, StructuredVariants):
            pytest.skip("the pruner merges structures")
        half = variants.at(weight, variants.counts[len(variants.counts) // 2])
        kept = ~shape.empty(half)
        bodies, before = shape.bodies(half)[:, kept], shape.bodies(weight)[:, kept]
        assert torch.equal(bodies, before) != pruner.updates

    def test_makers_of_kept_structures_are_unchanged(self, pruner: Pruner) -> None:
        """Only the consumer and its bias may make up for what is removed.

        A pruner whose variants are stored whole may also merge structures.
        """
        weight, shape = draw_matrix(pruner), build_shape(pruner)
        variants = self.run(pruner, weight)
        if not isinstance(variants, StructuredVariants):
            pytest.skip("the pruner merges structures")
        for count in variants.counts:
            pruned = variants.at(weight, count)
            kept = ~shape.empty(pruned)
            before, after = (shape.bodies(w)[:, kept, shape.inner :] for w in (weight, pruned))
            assert torch.equal(before, after)

    def test_empty_structures_go_first(self, pruner: Pruner) -> None:
        """Structures that are zeros already count as removed."""
        shape, weight = build_shape(pruner), draw_matrix(pruner)
        for index in {0, shape.count - 1}:
            shape.bodies(weight)[:, index] = 0
        self.assert_exact(pruner, self.run(pruner, weight), weight)

    def test_ties_and_zeros(self, pruner: Pruner) -> None:
        """Equal structures, and a matrix of zeros, do no harm."""
        for weight in (torch.ones_like(draw_matrix(pruner)), draw_matrix(pruner) * 0):
            self.assert_exact(pruner, self.run(pruner, weight), weight)

    def test_dead_and_singular_inputs(self, pruner: Pruner) -> None:
        """Inputs that are always zero, few, or copies of each other do no harm."""
        shape, weight = build_shape(pruner), draw_matrix(pruner)
        inputs = draw_correlated_inputs(300, shape.count * shape.inner)
        copies = inputs.clone()
        copies[:, 1::2] = copies[:, ::2]
        dead = inputs.clone()
        dead[:, ::3] = 0
        for given in (inputs[:4], copies, dead, inputs * 0):
            self.assert_exact(pruner, self.run(pruner, weight, given), weight)

    def test_weight_is_not_modified(self, pruner: Pruner) -> None:
        """Neither pruning nor taking variants writes to the dense weight."""
        weight = draw_matrix(pruner)
        before = weight.clone()
        variants = self.run(pruner, weight)
        for count in variants.counts:
            variants.at(weight, count).fill_(9.0)
        assert torch.equal(weight, before)
        self.assert_exact(pruner, variants, weight)

    def test_deterministic(self, pruner: Pruner) -> None:
        """Equal seeds give equal bits, and the global random state is neither used nor moved."""
        weight = draw_matrix(pruner).round()
        state = torch.get_rng_state()
        first = self.run(pruner, weight, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        second = self.run(pruner, weight, seed=3)
        for count in first.counts:
            assert torch.equal(first.at(weight, count), second.at(weight, count))

    def test_seed_decides_ties_only(self, pruner: Pruner) -> None:
        """Where no two scores are equal, the seed has no effect."""
        self.assert_same(pruner, self.run(pruner, seed=1), self.run(pruner, seed=2))

    def test_counts_are_independent(self, pruner: Pruner) -> None:
        """A count gives the same variant alone as in a table."""
        together = self.run(pruner)
        for count in together.counts:
            self.assert_same(pruner, self.run(pruner, counts=[count]), together)

    def test_scale_of_inputs(self, pruner: Pruner) -> None:
        """Inputs times a constant change no choice and no consumer."""
        shape = build_shape(pruner)
        inputs = draw_correlated_inputs(300, shape.count * shape.inner)
        weight = draw_matrix(pruner)
        shape.bias(weight)[:] = 0
        one, other = (self.run(pruner, weight, inputs * scale) for scale in (1, 3))
        for count in one.counts:
            first, second = one.at(weight, count), other.at(weight, count)
            assert torch.equal(first == 0, second == 0)
            torch.testing.assert_close(
                shape.bodies(first), shape.bodies(second), rtol=1e-3, atol=1e-4
            )

    def test_round_trip(self, pruner: Pruner) -> None:
        """Stored variants are the same when they are read."""
        variants, weight = self.run(pruner), draw_matrix(pruner)
        read = variants_from_tensors(variants.kind, variants.counts, variants.tensors())
        for count in variants.counts:
            assert torch.equal(read.at(weight, count), variants.at(weight, count))

    def test_illegal_counts(self, pruner: Pruner) -> None:
        """A table that is not increasing, or leaves the unit's size, is refused."""
        for counts in ([-1], [1, 1], [1, 0], [build_shape(pruner).count + 1]):
            with pytest.raises(ConfigError):
                self.run(pruner, counts=counts)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_finite(self, pruner: Pruner, bad: float) -> None:
        """NaN or Inf in weight or inputs is an error, never a result."""
        weight, shape = draw_matrix(pruner), build_shape(pruner)
        weight[2, 3] = bad
        with pytest.raises(NumericalError):
            self.run(pruner, weight)
        if pruner.requires > Statistic.NONE:
            inputs = draw_correlated_inputs(300, shape.count * shape.inner)
            inputs[4, 5] = bad
            with pytest.raises(NumericalError):
                self.run(pruner, inputs=inputs)

    def test_needs_structures(self, pruner: Pruner) -> None:
        """A unit of single weights is refused."""
        inputs = draw_correlated_inputs(50, 16)
        evidence = Evidence(
            inputs=gather_statistics(inputs, pruner.requires), gradient=build_gradient(8, inputs)
        )
        with pytest.raises(ConfigError):
            pruner.prune(draw_gaussian(8, 16), evidence, [1], seed=0)

    def assert_same(self, pruner: Pruner, some: Variants, all_: Variants) -> None:
        """Assert equal variants up to float32 rounding at the counts of ``some``."""
        weight = draw_matrix(pruner)
        for count in some.counts:
            one, other = some.at(weight, count), all_.at(weight, count)
            assert torch.equal(one == 0, other == 0)
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
