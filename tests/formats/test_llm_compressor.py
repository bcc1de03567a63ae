from __future__ import annotations

from typing import Any

import pytest
import yaml

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.formats.llm_compressor import LlmCompressorFormat
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts
from tests.helpers.documents import LAYOUT, family

SMALL = Layout([Unit(name=f"m.{i}.q", block=i, role="q", count=4) for i in range(3)])
WRITTEN = """pruning_stage:
  pruning_0_modifiers:
    SparseGPTModifier:
      sparsity: 0.25
      mask_structure: 0:0
      targets:
      - m.0.q
      - m.2.q
  pruning_1_modifiers:
    SparseGPTModifier:
      sparsity: 0.75
      mask_structure: 0:0
      targets:
      - m.1.q
"""
BY_HAND = """
prune:
  first_modifiers:
    WandaPruningModifier: {sparsity: 0.5, targets: [model.layers.0], ignore: ["re:.*lm_head"]}
  second_modifiers:
    SparseGPTModifier: {sparsity: 0.8, mask_structure: "0:0", targets: model.layers.1}
  QuantizationModifier: {targets: [Linear]}
"""


def test_written() -> None:
    assert LlmCompressorFormat().write(ProfileDocument(from_counts(SMALL, [1, 3, 1]))) == WRITTEN
    assert LlmCompressorFormat().read(WRITTEN, SMALL).profile.removed == (1, 3, 1)


def test_written_values_stay_texts() -> None:
    text = LlmCompressorFormat(modifier="WandaPruningModifier", mask_structure="2:4").write(
        ProfileDocument(Budget(0.5).uniform(LAYOUT))
    )
    (group,) = yaml.safe_load(text)["pruning_stage"].values()
    assert group["WandaPruningModifier"]["mask_structure"] == "2:4"  # not a number of base 60
    assert group["WandaPruningModifier"]["targets"] == [unit.name for unit in LAYOUT]


MIXTURE = Layout(
    [
        Unit(name="m.0.q", block=0, role="q", count=8),
        Unit(name="m.0.experts.0.gate_up_proj", block=0, role="expert_gate_up", count=8),
        Unit(name="m.0.experts.0.down_proj", block=0, role="expert_down", count=8),
        Unit(name="m.0.experts.1.up_proj", block=0, role="expert_up", count=8),
    ]
)


def test_fused_experts_have_the_names_of_their_linear_layers() -> None:
    """As the tool names them: experts.N.gate_proj, up_proj and down_proj."""
    text = LlmCompressorFormat().write(ProfileDocument(from_counts(MIXTURE, [4, 2, 6, 6])))
    found = {
        target: group["SparseGPTModifier"]["sparsity"]
        for group in yaml.safe_load(text)["pruning_stage"].values()
        for target in group["SparseGPTModifier"]["targets"]
    }
    assert found == {
        "m.0.q": 0.5,
        "m.0.experts.0.gate_proj": 0.25,
        "m.0.experts.0.up_proj": 0.25,
        "m.0.experts.0.down_proj": 0.75,
        "m.0.experts.1.up_proj": 0.75,
    }
    assert LlmCompressorFormat().read(text, MIXTURE).profile.removed == (4, 2, 6, 6)
    for name in ("gate_proj", "up_proj"):
        other = text.replace(f"      - m.0.experts.0.{name}\n", "")
        with pytest.raises(ProfileError, match=r"gate_up_proj is one unit: .* need one sparsity"):
            LlmCompressorFormat().read(other, MIXTURE)


def test_experts_that_the_tool_does_not_split() -> None:
    layout = Layout([Unit(name="m.0.ffn.experts.0.w1", block=0, role="expert_gate", count=8)])
    with pytest.raises(ProfileError, match=r"experts\.0\.w1 is no module, .*--exclude"):
        LlmCompressorFormat().write(ProfileDocument(from_counts(layout, [4])))


def test_by_hand() -> None:
    assert LlmCompressorFormat().read(BY_HAND, LAYOUT).profile.removed == (5, 2, 15, 8, 3, 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "neither SparseGPTModifier nor"),
        ("[]", "neither SparseGPTModifier nor"),
        (BY_HAND.replace("sparsity: 0.8", "sparsity: [0.8]"), "list of sparsities"),
        (BY_HAND.replace("sparsity: 0.8", "sparsity: 8"), "within 0 and 1"),
        (BY_HAND.replace("sparsity: 0.8,", ""), "needs both sparsity and targets"),
        (BY_HAND.replace("[model.layers.0]", "['re:.*']"), "not patterns like 're"),
        (BY_HAND.replace("[model.layers.0]", "3"), "names of layers, not 3"),
        (BY_HAND.replace("layers.1", "layers.0"), "in two modifiers"),
        (BY_HAND.replace("layers.1", "layers.1.mlp"), "no value for 2 units"),
        (BY_HAND.replace("[model.layers.0]", "[Linear]"), "no unit is called 'Linear'"),
        (BY_HAND.replace("second", "first"), "'first_modifiers' stands twice"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        LlmCompressorFormat().read(text, LAYOUT)


def test_structures_are_refused() -> None:
    profile = Budget(0.5).uniform(family({"q": 10}, 2, cost=4))
    with pytest.raises(ProfileError, match="removes structures"):
        LlmCompressorFormat().write(ProfileDocument(profile))


@pytest.mark.parametrize(
    "settings", [{"modifier": "MagnitudePruningModifier"}, {"mask_structure": "row"}]
)
def test_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LlmCompressorFormat(**settings)
