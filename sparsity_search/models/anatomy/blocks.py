"""The decoder blocks of a model, and the replacement of their forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sparsity_search.errors import ModelError
from sparsity_search.utils.expressions import Expression

#: Attribute of a model: name of the module list chosen by the user. No checkpoint holds it.
_CHOSEN = "_sparsity_search_blocks"
#: Largest number of names that an error lists.
_LISTED = 8


def find_blocks(model: nn.Module, pattern: str | None = None) -> tuple[str, nn.ModuleList]:
    """Return the decoder blocks and the name of their module list.

    Args:
        model: A decoder model of transformers.
        pattern: A regular expression that matches the name of one module list, for this call and
            all later ones on the model. Lists inside a matching one do not count. By default, the
            first list with as many modules as the configuration has layers.

    Raises:
        ModelError: No list matches, or more than one.
        ConfigError: ``pattern`` is not a regular expression.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if pattern is not None:
        name = _match_one(lists, pattern, type(model).__name__)
        setattr(model, _CHOSEN, name)
        return name, lists[name]
    if (chosen := getattr(model, _CHOSEN, None)) is not None:
        return chosen, lists[chosen]
    config = getattr(model, "config", None)
    n_layers = getattr(config and config.get_text_config(), "num_hidden_layers", None)
    for name, modules in lists.items():
        if len(modules) == n_layers:
            return name, modules
    raise ModelError(
        f"no decoder blocks found in {type(model).__name__}: no module list has {n_layers} "
        f"layers, as its config says; name one with --blocks REGEX: {_join_names(lists)}"
    )


@contextmanager
def replace_forwards(
    blocks: Iterable[nn.Module], forwards: Iterable[Callable[..., Any]]
) -> Iterator[None]:
    """Replace the forward functions of blocks inside; their hooks stay."""
    blocks = list(blocks)
    originals = [block.__dict__.get("forward") for block in blocks]
    for block, forward in zip(blocks, forwards, strict=False):
        block.forward = forward
    try:
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            block.__dict__.pop("forward", None)
            if original is not None:
                block.forward = original


def _match_one(lists: dict[str, nn.ModuleList], pattern: str, model: str) -> str:
    expression = Expression(pattern, "--blocks")
    matching = [name for name in lists if expression.finds(name)]
    outer = [n for n in matching if not any(n.startswith(f"{other}.") for other in matching)]
    if len(outer) == 1:
        return outer[0]
    if not outer:
        raise ModelError(
            f"--blocks {pattern!r} matches no module list of {model}: {_join_names(lists)}"
        )
    raise ModelError(f"--blocks {pattern!r} matches {_join_names(outer)}: name one")


def _join_names(lists: dict[str, nn.ModuleList] | list[str]) -> str:
    names = list(lists)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "it has none"
