"""The decoder blocks of a model, and the replacement of their forward passes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.utils.expressions import Expression

#: Attribute of a model: name of the module list of its blocks. No checkpoint holds it.
_CHOSEN = "_sparsity_search_blocks"
#: Largest number of names that an error lists.
_LISTED = 8
#: Number of tokens that show through which lists a text passes.
_TRIED = 4


def find_blocks(model: nn.Module, pattern: str | None = None) -> tuple[str, nn.ModuleList]:
    """Return the decoder blocks and the name of their module list.

    Args:
        model: A decoder model of transformers.
        pattern: A regular expression that matches the name of one module list, for this call and
            all later ones on the model. Lists inside a matching one do not count. By default, the
            list through which a text passes, block after block. If several lists or none have as
            many modules as the configuration has layers, a few tokens are run to see it.

    Raises:
        ModelError: No list matches, or more than one.
        ConfigError: ``pattern`` is not a regular expression.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if pattern is not None:
        name = _match_one(lists, pattern, type(model).__name__)
    else:
        name = getattr(model, _CHOSEN, "") or _choose(model, lists)
    setattr(model, _CHOSEN, name)
    return name, lists[name]


def _choose(model: nn.Module, lists: dict[str, nn.ModuleList]) -> str:
    config = getattr(model, "config", None)
    depth = getattr(config and config.get_text_config(), "num_hidden_layers", None)
    found = _drop_inner(name for name, modules in lists.items() if len(modules) == depth)
    if len(found) != 1:
        candidates = found or _drop_inner(lists)
        runs = not any(parameter.is_meta for parameter in model.parameters())
        find = _find_passed if runs else _find_in_decoder
        found = find(model, {name: lists[name] for name in candidates})
    if found:
        return found[0]
    raise ModelError(
        f"no decoder blocks found in {type(model).__name__}: its config says {depth} layers, and "
        f"a text passes through no module list; name one with --blocks REGEX: {_join_names(lists)}"
    )


@torch.inference_mode()
def _find_passed(model: nn.Module, lists: dict[str, nn.ModuleList]) -> list[str]:
    """Return the lists through which a text passes: each module gets what the last one returned.

    A pass that fails counts as far as it went.
    """
    inputs: dict[str, list[Any]] = {name: [] for name in lists}
    outputs: dict[str, list[Tensor]] = {name: [] for name in lists}

    def watch(module: nn.Module, name: str) -> list[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[name].append(args[0] if args else kwargs.get("hidden_states"))

        def leave(_: nn.Module, _args: Any, output: Any) -> None:
            outputs[name].append(output if isinstance(output, Tensor) else output[0])

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]

    handles = [h for name, of in lists.items() for module in of for h in watch(module, name)]
    tokens = torch.arange(_TRIED, device=next(model.parameters()).device)[None]
    try:
        model(input_ids=tokens, use_cache=False)
    except Exception:  # arbitrary model code may raise any exception
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [
        name
        for name in lists
        if inputs[name] and all(map(_is_same, outputs[name], inputs[name][1:]))
    ]


def _is_same(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _find_in_decoder(model: nn.Module, lists: dict[str, nn.ModuleList]) -> list[str]:
    """Return the lists in what the library calls the decoder, for a model without weights."""
    inside = {id(module) for module in model.get_decoder().modules()}  # type: ignore[operator]
    return [name for name, modules in lists.items() if id(modules) in inside]


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


@contextmanager
def replace_calls(
    blocks: Iterable[nn.Module], calls: Iterable[Callable[..., Any]]
) -> Iterator[None]:
    """Replace the forward functions of blocks inside; their hooks do not run."""
    blocks = list(blocks)
    names = ("_forward_pre_hooks", "_forward_hooks")
    hooks = [(block, name, getattr(block, name)) for block in blocks for name in names]
    try:
        for block, name, _ in hooks:
            setattr(block, name, OrderedDict())
        with replace_forwards(blocks, calls):
            yield
    finally:
        for block, name, own in hooks:
            setattr(block, name, own)


def _drop_inner(names: Iterable[str]) -> list[str]:
    """Return the lists that are in no other of these lists."""
    names = list(names)
    return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]


def _match_one(lists: dict[str, nn.ModuleList], pattern: str, model: str) -> str:
    expression = Expression(pattern, "--blocks")
    outer = _drop_inner(name for name in lists if expression.finds(name))
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
