"""What a linear layer does in its block, from its name: data, not code for each model class."""

from __future__ import annotations

#: Last part of a module's name → role. Names that are not here keep theirs as the role.
ROLES: dict[str, str] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}

#: Role → the role whose input its output is made into, in a gated feed-forward.
FOLLOWED_BY: dict[str, str] = {"gate": "down", "up": "down"}


def role_of(module_name: str) -> str:
    """Return the role of a linear layer.

    >>> role_of("model.layers.0.self_attn.q_proj")
    'q'
    """
    last = module_name.rpartition(".")[2]
    return ROLES.get(last, last)
