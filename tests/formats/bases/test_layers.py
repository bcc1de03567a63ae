from __future__ import annotations

import json

import pytest

from sparsity_search.formats.bases.layers import join_rows, sum_rows
from sparsity_search.formats.evopress import EvopressFormat
from sparsity_search.formats.llm_compressor import LlmCompressorFormat
from sparsity_search.formats.owl import OwlFormat
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts

#: Queries, keys and values of one layer beside a layer of its own.
FUSED = Layout(
    [
        Unit(name="h.0.qkv[q]", block=0, role="q", count=20, zeros=1),
        Unit(name="h.0.qkv[k]", block=0, role="k", count=10),
        Unit(name="h.0.qkv[v]", block=0, role="v", count=10, zeros=2),
        Unit(name="h.0.up", block=0, role="up", count=40),
    ]
)
PROFILE = from_counts(FUSED, [10, 8, 2, 30])


def test_rows_of_a_layer_are_joined() -> None:
    layers, places = join_rows(FUSED)
    assert [(u.name, u.count, u.zeros) for u in layers] == [("h.0.qkv", 40, 3), ("h.0.up", 40, 0)]
    assert places.tolist() == [0, 0, 0, 1]
    assert sum_rows(PROFILE) == from_counts(layers, [20, 30])


def test_layers_alone_stay_as_they_are() -> None:
    layout = Layout(list(FUSED)[3:])
    assert sum_rows(from_counts(layout, [7])) == from_counts(layout, [7])


def test_recipes_name_layers() -> None:
    text = LlmCompressorFormat().write(ProfileDocument(PROFILE))
    assert "- h.0.qkv\n" in text
    assert "[" not in text
    assert LlmCompressorFormat().read(text, FUSED).profile.removed == (10, 5, 5, 30)


def test_levels_are_of_layers() -> None:
    # 50 of 80 weights; level -1 of 5 weights on 25 of 40, which is half of the layer
    format_ = EvopressFormat(sparsity=0.625, step=5)
    text = format_.write(ProfileDocument(PROFILE))
    assert text == "h.0.qkv: -1\nh.0.up: 1\n"
    assert format_.read(text, FUSED).profile.removed == (10, 5, 5, 30)


def test_rows_have_ratios_of_their_own() -> None:
    text = OwlFormat().write(ProfileDocument(PROFILE))
    assert json.loads(text)["h.0.qkv[k]"] == pytest.approx(0.8)
    assert OwlFormat().read(text, FUSED).profile == PROFILE
    mixed = '{"h.0.qkv": 0.5, "h.0.up": 0.75}'
    assert OwlFormat().read(mixed, FUSED).profile.removed == (10, 5, 5, 30)
