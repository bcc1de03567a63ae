from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import Tensor

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.walk import walk
from sparsity_search.workflow.compare.meter import Cost, Meter


def test_whole_passes_are_counted(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter, torch.inference_mode():
        compute_last_hidden(tiny_subject.model, tiny_tokens)
        compute_last_hidden(tiny_subject.model, tiny_tokens[:5, :8])
    assert meter.cost.passes == pytest.approx(1.25)
    assert meter.cost.gradient_passes == 0


def test_one_block_is_a_part_of_a_pass(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    runner = BlockRunner(tiny_subject, tiny_tokens)
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter:
        hidden = runner.embed()  # stops before the first block has run
        assert not any(meter._tokens.values())
        hidden = runner.run(0, hidden)
        runner.run(2, hidden)
    assert meter.cost.passes == pytest.approx(2 / 3)


def test_a_replaced_block_does_not_run(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    runner = BlockRunner(tiny_subject, tiny_tokens)
    hidden = runner.embed()
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter:
        runner.finish(hidden)
    assert meter.cost.passes == 0


def test_a_walk_that_prunes_runs_each_block_twice(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter:
        list(walk(tiny_subject, tiny_tokens, Statistic.NORM, rewritten=True))
    assert meter.cost.passes == pytest.approx(2)  # none to learn how blocks are called
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter:
        list(walk(tiny_subject, tiny_tokens, Statistic.NORM, rewritten=False))
    assert meter.cost.passes == pytest.approx(1)


def test_passes_with_gradients_are_counted_apart(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter:
        compute_weight_gradients(tiny_subject, tiny_tokens[:5])
        with torch.enable_grad():
            compute_last_hidden(tiny_subject.model, tiny_tokens)  # nothing requires a gradient
    assert meter.cost.passes == pytest.approx(1.0)
    assert meter.cost.gradient_passes == pytest.approx(0.5)


def test_copies_of_a_block_count_too(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    with Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter, torch.inference_mode():
        compute_last_hidden(copy.deepcopy(tiny_subject.model), tiny_tokens)
    assert meter.cost.passes == pytest.approx(1.0)


def test_nothing_is_left_behind(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    with pytest.raises(KeyError), Meter(tiny_subject.blocks, tiny_tokens.numel()) as meter:
        raise KeyError
    assert not any(block._forward_hooks for block in tiny_subject.blocks)
    assert meter.cost.passes == 0


def test_time_is_that_of_the_clock_and_of_the_cpu(tiny_subject: PrunableModel) -> None:
    with Meter(tiny_subject.blocks, 0) as meter:
        time.sleep(0.03)
    assert meter.cost.seconds >= 0.03
    assert meter.cost.cpu_seconds < meter.cost.seconds


def test_a_cost_is_json() -> None:
    cost = Cost(seconds=1.23456, cpu_seconds=2, passes=1 / 3, gradient_passes=0)
    assert cost.to_json() == {
        "seconds": 1.235, "cpu_seconds": 2, "passes": 0.333, "gradient_passes": 0
    }  # fmt: skip
