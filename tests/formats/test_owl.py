from __future__ import annotations

import json

import pytest

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.formats.owl import OwlFormat
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from tests.helpers.documents import LAYOUT, PROFILE

BLOCKS = (5, 2, 15, 8, 3, 24)  # 0.5 and 0.8; 4 weights have 3.2, 10 have 8, 30 have 24
FORMS = {
    "JSON, block index": '{"0": 0.5, "1": 0.8}',
    "YAML, block index": "0: 0.5\n1: 0.8\n",
    "list": "[0.5, 0.8]",
    "module of a block": "model.layers.0: 0.5\nmodel.layers.1: 0.8\n",
    "modules in a block": "0: 0.5\nmodel.layers.1.mlp: 0.8\nmodel.layers.1.self_attn: 8e-1\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_by_hand(form: str) -> None:
    assert OwlFormat().read(FORMS[form], LAYOUT).profile.removed == BLOCKS


def test_by_layer_name() -> None:
    ratios = dict(zip([unit.name for unit in LAYOUT], [0.1, 0.25, 0.3, 0, 1, 0.9], strict=True))
    assert OwlFormat().read(json.dumps(ratios), LAYOUT).profile.removed == (1, 1, 9, 0, 4, 27)


def test_the_total_is_what_the_ratios_mean() -> None:
    units = [Unit(name=f"a.{i}", block=7, role="q", count=3) for i in range(100)]
    removed = OwlFormat().read("7: 0.5", Layout(units)).profile.removed
    assert sum(removed) == 150
    assert set(removed) == {1, 2}


def test_a_unit_of_that_name_goes_before_a_block() -> None:
    layout = Layout([Unit(name=str(i), block=0, role="q", count=10) for i in range(2)])
    assert OwlFormat().read("{0: 0.1, 1: 0.9}", layout).profile.removed == (1, 9)


def test_what_is_zero_already_counts() -> None:
    units = [Unit(name=f"a.{i}", block=i, role="q", count=10, zeros=4 * i) for i in range(2)]
    assert OwlFormat().read("[0.1, 0.1]", Layout(units)).profile.removed == (0, 4)
    assert OwlFormat().read("[0.5, 0.1]", Layout(units)).profile.removed == (2, 4)


def test_tiny_ratios_in_json() -> None:
    layout = Layout([Unit(name="a", block=0, role="q", count=10**6)])
    assert OwlFormat().read('{"a": 1e-05}', layout).profile.removed == (10,)


def test_written() -> None:
    assert (
        json.loads(OwlFormat().write(ProfileDocument(PROFILE)))["model.layers.1.mlp.up_proj"]
        == 0.2
    )
    ratios = json.loads(OwlFormat(by="block").write(ProfileDocument(PROFILE)))
    assert ratios == {"0": 27 / 44, "1": 16 / 44}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not YAML or JSON"),
        ("", "a mapping of layer names"),
        ("0.5", "a mapping of layer names"),
        ("{}", "a mapping of layer names"),
        ("[0.5]", "no value for 3 units"),
        ("[0.5, 0.5, 0.5]", "no unit is called '2'"),
        ("{0: 0.5, 0: 0.6, 1: 0.5}", "0 stands twice"),
        ("{0: 0.5, 1: 0.5, model.layers.1.mlp.up_proj: 0.5}", r"1\.mlp\.up_proj is given a value"),
        ("{0: 0.5, 1: 70}", r"must be within 0 and 1, not 70"),
        ("{0: 0.5, 1: -0.1}", r"must be within 0 and 1"),
        ("{0: 0.5, 1: .nan}", "not a number"),
        ("{0: 0.5, 1: .inf}", "not a finite number"),
        ("{0: 0.5, 1: true}", "not a finite number"),
        ("{0: 0.5, 1: [0.5]}", "not a finite number"),
        ("{0: 0.5, 1: 2001-01-01}", "not a finite number"),
        ("{0: 0.5, model.layers.1.mlp.up_prj: 0.5}", "did you mean 'model.layers.1.mlp.up_proj'"),
        ("!!python/object/apply:os.getcwd []", "not YAML or JSON"),
        ("{[0]: 1}", "no plain value"),
        ("&a {0: *a}", "aliases"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        OwlFormat().read(text, LAYOUT)


def test_settings() -> None:
    with pytest.raises(ConfigError, match="by must be"):
        OwlFormat(by="layer")  # type: ignore[arg-type]
