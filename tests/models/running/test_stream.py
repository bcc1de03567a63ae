from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ModelError
from sparsity_search.models.running.stream import Part, Stream, arrange_hidden


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_what_a_block_writes_is_there_for_the_next(kind: Any) -> None:
    shared = kind(given=torch.ones(1))

    def write(states: Tensor, mapping: Any) -> Tensor:
        mapping["given"], mapping["new"] = mapping["given"] + 1, states
        return states + 1

    def read(states: Tensor, mapping: Any) -> Tensor:
        return states + mapping["given"] + mapping["new"]

    calls = [{0: Part(0), "mapping": shared}, {"states": Part(0), "mapping": shared}]
    first = Stream((1, 2), calls, torch.zeros(1, 2, 3))
    second = first.call(0, write)
    assert second.call(1, read).output.unique() == 1 + 2 + 0
    assert list(shared) == ["given"]
    assert shared["given"] == 1
    assert first.call(0, write).call(1, read).output.unique() == 3  # as often as one likes
    assert first.output.unique() == 0


def test_parts_of_an_output_are_passed() -> None:
    calls = [{0: Part(0)}, {0: Part(0), 1: 5, "more": Part(2)}]
    first = Stream((1, 2), calls, torch.zeros(1, 2, 3))
    second = first.call(0, lambda states: (states, None, states + 7))
    assert second.hidden.unique() == 0
    third = second.call(1, lambda states, five, more: states + five + more)
    assert third.hidden.unique() == 12


def test_tensors_are_prepared() -> None:
    with torch.inference_mode():
        stream = Stream((1, 2), [{0: Part(0), "pair": (1, torch.ones(3))}], torch.zeros(1, 2, 3))

    def forward(states: Tensor, pair: tuple[int, Tensor]) -> Tensor:
        assert not states.is_inference()
        assert not pair[1].is_inference()
        return states + pair[1]

    assert stream.call(0, forward, Tensor.clone).output.unique() == 1


def test_hidden_states_of_several_streams() -> None:
    states = torch.arange(5 * 2 * 3 * 4).view(5, 2, 3, 4)  # streams, batch, length, hidden
    found = arrange_hidden(states, (2, 3))
    assert found.shape == (2, 3, 20)
    assert torch.equal(found[1, 2].view(5, 4), states[:, 1, 2])
    behind = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4)
    assert torch.equal(arrange_hidden((behind, None), (2, 3)), behind.flatten(2))
    plain = torch.zeros(2, 3, 4)
    assert arrange_hidden(plain, (2, 3)).data_ptr() == plain.data_ptr()
    with pytest.raises(ModelError, match=r"shape \(3, 2, 4\) are not understood .* 2 x 3 tokens"):
        arrange_hidden(plain.transpose(0, 1), (2, 3))
