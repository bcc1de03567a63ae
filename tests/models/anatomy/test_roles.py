from __future__ import annotations

import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.measures.flops import FlopsMeasure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.roles import ROLES, infer_roles
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import ALL_FAMILIES
from tests.helpers.odd_model import ROLES as ODD_ROLES
from tests.helpers.odd_model import odd_model

DENSE = ("q", "k", "v", "o", "gate", "up", "down")
PLAIN = ("q", "k", "v", "o", "up", "down")
EXPERTS = ("q", "k", "v", "o", "expert_gate_up", "expert_down")
MAMBA = ("in_proj", "x_proj", "dt_proj", "out_proj")
#: The roles in all blocks of each family, known from its paper or its source.
EXPECTED = {
    **dict.fromkeys(("llama", "gemma3", "granite", "cohere", "llama_tied", "mistral"), DENSE),
    **dict.fromkeys(("qwen2", "qwen3", "olmo2", "stablelm", "phi3"), DENSE),
    # fused queries, keys and values are units of their own
    **dict.fromkeys(
        ("gpt2", "gpt_neox", "bloom", "falcon", "falcon_new", "mpt", "codegen"), PLAIN
    ),
    **dict.fromkeys(("opt", "opt_post_norm", "phi", "gptj"), PLAIN),
    "mamba": MAMBA,
    "mamba2": ("in_proj", "out_proj"),
    "falcon_h1": (*DENSE, "in_proj", "out_proj"),
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
    "gpt_oss": EXPERTS,
    "jamba": (*DENSE, *MAMBA, "expert_gate_up", "expert_down"),
    "qwen3_next": (*DENSE, "qkv", "in_proj_ba", "expert_gate_up", "expert_down"),
}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_roles_of_families(family: str) -> None:
    layout = PrunableModel(ALL_FAMILIES[family]()).layout
    assert {unit.role for unit in layout} == set(EXPECTED[family])


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        ("c_attn c_proj", "qkv o"),
        ("c_fc c_proj", "up down"),
        ("query_key_value dense", "qkv o"),
        ("q_proj k_proj v_proj dense", "q k v o"),
        ("k_proj out_proj", "k o"),
        ("in_proj x_proj dt_proj out_proj", "in_proj x_proj dt_proj out_proj"),
        ("in_proj_qkvz in_proj_ba out_proj", "qkv in_proj_ba o"),
        ("w1 w2 w3", "gate down up"),
        ("dense", "dense"),
        ("q_a_proj q_b_proj kv_b_proj o_proj", "q_a_proj q_b_proj kv_b_proj o"),
    ],
)
def test_neighbours_decide(names: str, roles: str) -> None:
    found = infer_roles(f"h.0.x.{name}" for name in names.split())
    assert list(found.values()) == roles.split()


def test_only_neighbours_decide() -> None:
    """The same names stand beside others in another module, and in the module around it."""
    names = ["0.attn.c_attn", "0.attn.c_proj", "0.mlp.c_proj", "0.c_proj", "c_attn"]
    assert list(infer_roles(names).values()) == ["qkv", "o", "c_proj", "c_proj", "qkv"]
    # a mixer beside an attention, as in Falcon-H1
    names = ["0.mamba.in_proj", "0.mamba.out_proj", "0.self_attn.q_proj", "0.self_attn.out_proj"]
    assert list(infer_roles(names).values()) == ["in_proj", "out_proj", "q", "o"]


def test_names_are_in_order() -> None:
    assert list(infer_roles(ROLES)) == list(ROLES)
    assert infer_roles([]) == {}


@pytest.mark.parametrize(
    ("patterns", "roles"),
    [
        ({}, "wk out_proj"),
        ({"wk": "k"}, "k o"),  # the neighbour of keys is their output
        ({r"^x\.wk$": "other", "proj$": "last"}, "other last"),
        ({"out": "down", "nothing": "up"}, "wk down"),
    ],
)
def test_patterns_go_before_names(patterns: dict[str, str], roles: str) -> None:
    assert list(infer_roles(["x.wk", "x.out_proj"], patterns).values()) == roles.split()


def test_structures_of_an_odd_family() -> None:
    """A feed-forward that is known by its roles alone has channels, and costs as Llama's does."""
    unknown = PrunableModel(odd_model(), units="width").layout
    assert {unit.role for unit in unknown} == {"attention"}
    odd = PrunableModel(odd_model(), units="width", roles=ODD_ROLES)
    llama = PrunableModel(tiny_llama(), units="width")
    assert [(u.role, u.count, u.cost) for u in odd.layout] == [
        (u.role, u.count, u.cost) for u in llama.layout
    ]
    assert FlopsMeasure().curves(odd) == FlopsMeasure().curves(llama)
    assert set(odd.linear_roles().values()) == set(DENSE)


def test_layers_of_one_role_are_no_feed_forward() -> None:
    """Two layers with the role of one: which of them is which is not known."""
    patterns = {"gate_proj": "up"}
    subject = PrunableModel(tiny_llama(), units="sublayers", roles=patterns)
    assert {unit.role for unit in subject.layout} == {"attention"}
    weights = PrunableModel(tiny_llama(), roles=patterns)
    assert len(weights.layout) == 21


def test_patterns_are_of_names_within_blocks() -> None:
    """The block's own name is no part of it: all blocks have the same roles."""
    with pytest.raises(ConfigError):
        PrunableModel(tiny_llama(), roles={"layers": "x"})
    with pytest.raises(ConfigError):
        PrunableModel(tiny_llama(), roles={"lm_head": "x"})
    layout = PrunableModel(tiny_llama(), roles={r"^mlp\.": "ffn"}).layout
    assert [unit.role for unit in layout] == ["q", "k", "v", "o", "ffn", "ffn", "ffn"] * 3
