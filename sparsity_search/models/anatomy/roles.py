"""What a linear layer does in its block, from names: data, not code for each model class."""

from __future__ import annotations

from collections.abc import Iterable

#: Last part of a module's name → role. Names that are not here keep theirs as the role.
ROLES: dict[str, str] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    # fused: one unit
    "c_attn": "qkv",
    "qkv_proj": "qkv",
    "query_key_value": "qkv",
    "Wqkv": "qkv",
    "in_proj_qkv": "qkv",
    "in_proj_qkvz": "qkv",
    "gate_up_proj": "gate_up",
    # other names of the feed-forward
    "c_fc": "up",
    "fc1": "up",
    "fc2": "down",
    "fc_in": "up",
    "fc_out": "down",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
    "w1": "gate",
    "w2": "down",
    "w3": "up",
}

#: Names of the last layer of an attention, or of a feed-forward, or of something else (Mamba).
OUTPUTS = ("out_proj", "dense", "c_proj")

#: Roles of a layer's neighbours, any of them → the layer's own role, if its name is in `OUTPUTS`.
OUTPUT_OF: dict[tuple[str, ...], str] = {
    ("q", "k", "v", "qkv"): "o",
    ("up", "gate", "gate_up"): "down",
}

#: Role → the role whose input its output is made into, in a feed-forward.
FOLLOWED_BY: dict[str, str] = {"gate": "down", "up": "down"}


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the role of each linear layer of a model, or of a part of it, by full name.

    >>> list(roles_of(["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]).values())
    ['qkv', 'o', 'up', 'down']
    >>> list(roles_of(["mixer.in_proj", "mixer.out_proj"]).values())  # no attention
    ['in_proj', 'out_proj']
    """
    parts = {name: name.rpartition(".") for name in names}
    neighbours: dict[str, set[str]] = {}
    for parent, _, last in parts.values():
        neighbours.setdefault(parent, set()).add(ROLES.get(last, last))
    return {name: _role(last, neighbours[parent]) for name, (parent, _, last) in parts.items()}


def _role(last: str, neighbours: set[str]) -> str:
    if last in OUTPUTS:
        for roles, role in OUTPUT_OF.items():
            if not neighbours.isdisjoint(roles):
                return role
    return ROLES.get(last, last)
