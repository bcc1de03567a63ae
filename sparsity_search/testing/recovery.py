"""The rules that every recovery keeps, see `sparsity_search.interfaces.recovery.Recovery`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.interfaces.recovery import Recovery, RecoveryProblem
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens, sample_text
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

#: A pruner for each kind of units, and its settings.
KINDS = {"weights": "wanda", "width": "flap", "heads": "wanda_sp", "sublayers": "drop"}


class Kept:
    """Progress in memory."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, Tensor]] = {}

    def load(self, part: str) -> dict[str, Tensor] | None:
        """Return the tensors of a part."""
        return self.parts.get(part)

    def keep(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a part."""
        self.parts[part] = {name: tensor.clone() for name, tensor in tensors.items()}


class RecoveryContract:
    """Inherit in a test module that has a fixture ``recovery``, with settings that are quick."""

    @pytest.fixture(params=KINDS)
    def problem(self, request: pytest.FixtureRequest, recovery: Recovery) -> RecoveryProblem:
        """A pruned tiny model, with units of each kind that the recovery is for."""
        if request.param not in recovery.units:
            pytest.skip(f"not for {request.param}")
        return prune_for(tiny_llama(), request.param)

    def test_is_a_value(self, recovery: Recovery) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert recovery == replace(recovery)
        assert hash(recovery) == hash(replace(recovery))
        assert "\n" not in repr(recovery)

    def test_keeps_the_pattern_and_the_dense_model(
        self, recovery: Recovery, problem: RecoveryProblem
    ) -> None:
        """Zeros stay where they are, no others come, and the dense model stays as it is."""
        before, dense = list_zeros(problem.subject), copy_weights(problem.dense.model)
        recovery.recover(problem)
        assert_same(before, list_zeros(problem.subject))
        assert_same(dense, copy_weights(problem.dense.model))

    def test_the_loss_falls(self, recovery: Recovery, problem: RecoveryProblem) -> None:
        """The loss on held-out text of the model's own falls, and weights change."""
        before = copy_weights(problem.subject.model)
        found = recovery.recover(problem)
        assert found.after < found.before
        after = copy_weights(problem.subject.model)
        assert any(not torch.equal(before[name], after[name]) for name in before)
        assert all(tensor.isfinite().all() for tensor in after.values())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_other_number_types(self, recovery: Recovery, dtype: torch.dtype) -> None:
        """The pattern stays in the number type in which a model is saved."""
        kind = recovery.units[0]
        problem = prune_for(tiny_llama(dtype=dtype), kind)
        before = list_zeros(problem.subject)
        types = [tensor.dtype for tensor in copy_weights(problem.subject.model).values()]
        recovery.recover(problem)
        assert_same(before, list_zeros(problem.subject))
        assert types == [t.dtype for t in copy_weights(problem.subject.model).values()]

    def test_is_saved_in_another_type(self, recovery: Recovery) -> None:
        """Weights that compute in float32 are those of the type in which they are saved."""
        problem = prune_for(tiny_llama(), recovery.units[0], saved_as=torch.bfloat16)
        recovery.recover(problem)
        for view in problem.subject.views.values():
            weight = view.read()
            assert torch.equal(weight, weight.bfloat16().float())

    def test_equal_arguments_equal_bits(
        self, recovery: Recovery, problem: RecoveryProblem
    ) -> None:
        """The global random state is neither read nor changed."""
        again = copy_problem(problem)
        state = torch.get_rng_state()
        recovery.recover(problem)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(17)
        recovery.recover(again)
        torch.set_rng_state(state)
        assert_same(copy_weights(problem.subject.model), copy_weights(again.subject.model))

    def test_without_time_the_weights_stay(
        self, recovery: Recovery, problem: RecoveryProblem
    ) -> None:
        """A time limit that is over leaves the model as it was."""
        before = copy_weights(problem.subject.model)
        found = recovery.recover(replace(problem, seconds_left=lambda: 0.0))
        assert_same(before, copy_weights(problem.subject.model))
        assert found.after == found.before

    def test_mixtures(self, recovery: Recovery) -> None:
        """Experts keep their zeros, in matrices of three axes."""
        if "weights" not in recovery.units:
            pytest.skip("not for weights")
        problem = prune_for(tiny_mixtral(), "weights")
        before = list_zeros(problem.subject)
        found = recovery.recover(problem)
        assert found.after <= found.before
        assert_same(before, list_zeros(problem.subject))

    def test_patterns(self, recovery: Recovery) -> None:
        """Groups of an N:M pattern keep the same weights."""
        if "weights" not in recovery.units:
            pytest.skip("not for weights")
        problem = prune_for(tiny_llama(), "weights", pattern="2:4")
        before = list_zeros(problem.subject)
        recovery.recover(problem)
        assert_same(before, list_zeros(problem.subject))

    def test_goes_on_where_it_was_stopped(
        self, recovery: Recovery, problem: RecoveryProblem
    ) -> None:
        """A job that is stopped after its first part ends as one that is not."""
        whole, rest = copy_problem(problem), copy_problem(problem)
        recovery.recover(whole)
        kept = Kept()

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            recovery.recover(replace(problem, progress=kept, advance=stop))
        recovery.recover(replace(rest, progress=kept))
        assert_same(copy_weights(whole.subject.model), copy_weights(rest.subject.model))


def prune_for(
    model: nn.Module,
    units: str,
    *,
    pattern: str | None = None,
    saved_as: torch.dtype | None = None,
) -> RecoveryProblem:
    """Return the problem of a tiny model, pruned by half and to be recovered on its own text."""
    dense = PrunableModel(copy.deepcopy(model), units=units)
    subject = PrunableModel(model, units=units, saved_as=saved_as)
    settings = {} if pattern is None else {"pattern": pattern}
    pruner = PRUNERS.create(KINDS[units], **settings)
    tokens = draw_random_tokens(4, 16)
    prune_sequentially(subject, Budget(0.5).uniform(subject.layout), pruner, tokens)
    text = sample_text(dense.model, 48, 16)
    return RecoveryProblem(subject, dense, text[:32], text[32:])


def copy_problem(problem: RecoveryProblem) -> RecoveryProblem:
    """Return a problem with a pruned model of its own."""
    old = problem.subject
    model = copy.deepcopy(old.model)
    return replace(problem, subject=PrunableModel(model, units=old.units, saved_as=old.saved_as))


def list_zeros(subject: PrunableModel) -> dict[str, Tensor]:
    """Return where the weights of the units are zero, by unit."""
    return {name: view.read() == 0 for name, view in subject.views.items()}


def assert_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Assert that tensors are equal to the bit."""
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
