"""Presets are legal configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.config.presets import list_presets, summarise_preset
from sparsity_search.engine.plugins import Plugins, choose_units
from sparsity_search.errors import ConfigError
from sparsity_search.spaces.files import load_space

NEEDED = {"model.name": "tiny", "budget.sparsity": 0.5}


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_is_a_legal_configuration(name: str) -> None:
    config = load_config(Path(name), NEEDED)
    plugins = Plugins.of(config)
    assert choose_units(config, plugins.pruner) in plugins.pruner.units
    load_space(config.space)
    data = config.data
    for rung in (rung for ladder in config.ladder.generations for rung in ladder.rungs):
        assert data.search_sequences * data.search_length >= rung.tokens
        assert rung.tokens % data.search_length == 0
    assert 20 < len(summarise_preset(name)) < 90


def test_options_win_over_presets() -> None:
    config = load_config(Path("tyr"), {**NEEDED, "study.stages": 2}, ["ladder.fresh=false"])
    assert (config.study.stages, config.study.rounds, config.ladder.fresh) == (2, 50, False)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'tyre': did you mean 'tyr'"):
        load_config(Path("tyre"), NEEDED)
