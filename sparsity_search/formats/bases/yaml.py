"""YAML and JSON that come from elsewhere: plain values only, no aliases, and no key twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from sparsity_search.errors import ProfileError


class _Loader(yaml.SafeLoader):
    """Refuses what plain data does not need.

    A key that stands twice: YAML itself keeps the last one silently. An alias: with it, a small
    file is a large value, or one without end.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ProfileError("aliases (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ProfileError("a key of a mapping is no plain value")
            if key.value in seen:
                raise ProfileError(f"{key.value!r} stands twice in a mapping")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load(text: str) -> Any:
    """Return the value of a YAML or JSON text.

    Raises:
        ProfileError: It is neither, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"not YAML or JSON: {' '.join(str(error).split())}") from error
