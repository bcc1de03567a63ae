from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsity_search.errors import ConfigError, ModelError
from sparsity_search.models.anatomy.blocks import find_blocks
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.testing.models import save_tiny_model, tiny_llama
from tests.helpers.families import make_family


class Towers(nn.Module):
    """Two towers of equal depth, the first with a list inside each block."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))
        inner = [nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(inner)})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})


def test_by_default_the_list_as_long_as_the_config_says() -> None:
    assert find_blocks(tiny_llama())[0] == "model.layers"
    assert find_blocks(Towers())[0] == "encoder.layers"


def test_a_pattern_chooses_whatever_the_length() -> None:
    model = Towers()
    name, blocks = find_blocks(model, "^decoder")
    assert (name, blocks) == ("decoder.layers", model.decoder["layers"])


def test_lists_inside_one_that_matches_do_not_count() -> None:
    assert find_blocks(Towers(), "encoder")[0] == "encoder.layers"
    assert find_blocks(Towers(), r"encoder.layers\.1")[0] == "encoder.layers.1"


def test_the_choice_is_kept_for_later_calls_and_copies() -> None:
    model = Towers()
    find_blocks(model, "decoder")
    assert find_blocks(model)[0] == "decoder.layers"
    other = copy.deepcopy(model)
    assert find_blocks(other) == ("decoder.layers", other.decoder["layers"])
    assert find_blocks(model, "encoder")[0] == "encoder.layers"


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("absent", ModelError, r"matches no module list of Towers: encoder\.layers, "),
        ("layers", ModelError, r"matches encoder.layers, decoder.layers: name one"),
        ("(", ConfigError, "--blocks '\\(' is not a regular expression"),
    ],
)
def test_faults(pattern: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_blocks(Towers(), pattern)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gemma3_equal_depths", "model.language_model.layers"),  # the vision tower comes first
        ("gemma3n", "model.layers"),  # two lists of projections have as many modules
        ("longcat_flash", "model.layers"),  # half as many as the config says
    ],
)
def test_by_default_the_list_that_a_text_passes_through(family: str, expected: str) -> None:
    model = make_family(family)
    assert find_blocks(model)[0] == expected
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert find_blocks(empty)[0] == expected  # as for --offload


def test_not_found_names_the_option_and_the_lists() -> None:
    model = Towers()
    del model.encoder  # the other list has another length, and the model cannot be run
    with pytest.raises(ModelError, match=r"2 layers.*--blocks REGEX: decoder\.layers"):
        find_blocks(model)
    assert find_blocks(model, "decoder")[0] == find_blocks(model)[0] == "decoder.layers"
    with pytest.raises(ModelError, match="--blocks REGEX: it has none"):
        PrunableModel(nn.Linear(2, 2))


def test_blocks_without_units() -> None:
    model = tiny_llama()
    model.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(4))
    with pytest.raises(ModelError, match=r"no prunable weights in the 4 blocks norms.*--blocks"):
        PrunableModel(model, blocks="norms")


def test_loading_keeps_the_choice(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "m"))
    with pytest.raises(ModelError, match="--blocks 'absent'"):
        load_model(folder, device="cpu", blocks="absent")
    loaded = load_model(folder, device="cpu", blocks="layers")
    assert PrunableModel(loaded.model).prefix == "model.layers"
