"""Roles of linear layers in their blocks, from names: data, not code for each model class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sparsity_search.errors import ConfigError
from sparsity_search.utils.expressions import Expression

#: Names that an error lists, at most.
_LISTED = 8
_OPTION = "model.roles"

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


def infer_roles(
    names: Iterable[str], patterns: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return the role of each linear layer of a block, or of a part of it, by name.

    Args:
        names: Names of linear layers.
        patterns: Roles by regular expression. A layer whose name matches one has its role;
            all others have the role of their name and of their neighbours.

    >>> list(infer_roles(["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]).values())
    ['qkv', 'o', 'up', 'down']
    >>> list(infer_roles(["mixer.in_proj", "mixer.out_proj"]).values())  # no attention
    ['in_proj', 'out_proj']
    >>> list(infer_roles(["mixer.in_proj", "mixer.out_proj"], {"mixer.in": "qkv"}).values())
    ['qkv', 'o']
    """
    parts = {name: name.rpartition(".") for name in names}
    stated = {name: next(iter(_match(name, patterns)), "") for name in parts}
    neighbours: dict[str, set[str]] = {}
    for name, (parent, _, last) in parts.items():
        neighbours.setdefault(parent, set()).add(stated[name] or ROLES.get(last, last))
    return {
        name: stated[name] or _infer_role(last, neighbours[parent])
        for name, (parent, _, last) in parts.items()
    }


def check_patterns(patterns: Mapping[str, str], names: Iterable[str]) -> None:
    """Check that each regular expression gives some linear layer its only role.

    Args:
        patterns: Roles by regular expression.
        names: Names of linear layers within their blocks, of all blocks.

    Raises:
        ConfigError: A pattern is no regular expression or matches no layer, a role is empty, or
            patterns give one layer several roles.
    """
    names = dict.fromkeys(names)
    for pattern, role in patterns.items():
        expression = Expression(pattern, _OPTION)
        used = any(expression.finds(name) for name in names)
        if not role:
            raise ConfigError(f"model.roles: {pattern!r} needs a role, such as gate")
        if not used:
            raise ConfigError(
                f"model.roles: {pattern!r} matches no linear layer of a block: they are "
                f"{', '.join(list(names)[:_LISTED])}{', …' if len(names) > _LISTED else ''}"
            )
    for name in names:
        roles = _match(name, patterns)
        if len(set(roles)) > 1:
            raise ConfigError(f"model.roles: {name} matches patterns of {' and '.join(roles)}")


def _match(name: str, patterns: Mapping[str, str]) -> list[str]:
    return [role for pattern, role in patterns.items() if Expression(pattern, _OPTION).finds(name)]


def _infer_role(last: str, neighbours: set[str]) -> str:
    if last in OUTPUTS:
        for roles, role in OUTPUT_OF.items():
            if not neighbours.isdisjoint(roles):
                return role
    return ROLES.get(last, last)
