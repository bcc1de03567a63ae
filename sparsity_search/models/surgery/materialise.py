"""Materialising: a model with empty structures becomes a really smaller one.

The result is of the same class, so that plain `from_pretrained` loads what is saved of it. Most
architectures have one feed-forward width and one number of heads for all blocks: then every
block keeps as many structures as the fullest one, the surplus as zeros (padding). Where the
configuration holds one feed-forward width a block, each keeps its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.evidence.structures import fullest
from sparsity_search.models.anatomy.experts import resized
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.sublayers import n_groups
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.layout import Unit

#: The configuration's switches for biases → the role of a layer that they give one.
_BIASES = {"attention_bias": "o", "mlp_bias": "down"}
#: Names that configurations have for the width of the feed-forward.
_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
#: Tokens on which an empty block is tried out.
_TRIED = 8


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a materialised model keeps.

    Attributes:
        blocks: Indices of the blocks that stay, in order.
        kept: For each unit of these blocks the structures that stay, ``(n,)`` int64, ascending.
        padding: Weights that stay though they are zero.
        per_block: Whether every block has a feed-forward width of its own.
    """

    blocks: tuple[int, ...]
    kept: Mapping[str, Tensor]
    padding: int
    per_block: bool


def saveable(subject: PrunableModel) -> PreTrainedModel:
    """Return the model in a form that `from_pretrained` loads.

    This is the model itself, unless pruning added biases or removed experts.

    Raises:
        ModelError: Pruning added a bias, and the architecture has no place for it; or its
            mixtures keep different numbers of experts.
    """
    views = subject.views.values()
    if any(isinstance(view, StructuredView) and view.gained_bias for view in views):
        return materialise(subject, everything(subject))
    model: PreTrainedModel = subject.model
    return resized(model)


def everything(subject: PrunableModel) -> Shape:
    """Return the shape that keeps all, for a model whose pruner only added biases."""
    kept = {unit.name: torch.arange(unit.count) for unit in subject.layout}
    return Shape(blocks=tuple(range(len(subject.blocks))), kept=kept, padding=0, per_block=False)


def plan(subject: PrunableModel, multiple: int = 1) -> Shape:
    """Return what the materialised model keeps of one with empty structures.

    Args:
        subject: The pruned model; its units are structures.
        multiple: Feed-forward widths are rounded up to a multiple of this.

    Raises:
        ModelError: The units are single weights, or nothing would be left.
    """
    empty = {unit.name: _empty(subject, unit) for unit in subject.layout}
    gone = _gone(subject, empty)
    blocks = tuple(b for b in range(len(subject.blocks)) if b not in gone)
    if not blocks:
        raise ModelError("every block is removed: nothing is left to materialise")
    units = [unit for unit in subject.layout if unit.block in blocks]
    per_block = isinstance(getattr(_text(subject), "intermediate_size", None), (list, tuple))
    kept = {}
    for unit in units:
        own = per_block and unit.role == "feed_forward"
        alike = [unit] if own else [other for other in units if other.role == unit.role]
        most = max(1, *(int((~empty[other.name]).sum()) for other in alike))
        step = multiple if unit.role == "feed_forward" else 1
        kept[unit.name] = fullest(empty[unit.name], min(-(-most // step) * step, unit.count))
    padding = sum(int(empty[unit.name][kept[unit.name]].sum()) * unit.cost for unit in units)
    return Shape(blocks=blocks, kept=kept, padding=padding, per_block=per_block)


def materialise(subject: PrunableModel, shape: Shape) -> PreTrainedModel:
    """Return a new model of the same class that holds only what ``shape`` keeps.

    Its logits are those of the pruned model, up to rounding.

    Args:
        subject: The pruned model; not modified.
        shape: What stays, from `plan`.

    Raises:
        ModelError: The architecture cannot have this shape, or a bias that pruning added.
    """
    weights = _weights(subject, shape)
    model: Any = subject.model
    try:
        with torch.random.fork_rng(devices=[]):
            made = type(model)(_config(subject, shape))
        made.to(device=model.device, dtype=model.dtype)
        for name, value in made.state_dict().items():
            if name not in weights and name.endswith(".bias"):
                weights[name] = torch.zeros_like(value)  # its neighbour has one now
        made.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:  # of torch, and of configurations
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{type(model).__name__} cannot have this shape: {reason}") from error
    made.generation_config = copy.deepcopy(model.generation_config)
    result: PreTrainedModel = made.eval().requires_grad_(False)
    return result


def _text(subject: PrunableModel) -> Any:
    return subject.model.config.get_text_config()  # type: ignore[operator, union-attr]


def _empty(subject: PrunableModel, unit: Unit) -> Tensor:
    view = subject.views[unit.name]
    if not isinstance(view, StructuredView):
        raise ModelError("only structures can be materialised, not single weights")
    return view.structures.empty(view.read()).cpu()


def _gone(subject: PrunableModel, empty: Mapping[str, Tensor]) -> set[int]:
    """Return the blocks whose units are all empty, and that do nothing therefore.

    Whether they do is tried out: there may be more in a block than its units, or a norm behind.
    """
    found = {
        block
        for block in range(len(subject.blocks))
        if (units := subject.units_of(block))
        and all(empty[unit.name].all() and not _bias(subject, unit).any() for unit in units)
    }
    if found:
        runner = BlockRunner(subject, torch.arange(_TRIED)[None])
        hidden = runner.embed()
        for block in range(len(subject.blocks)):
            before, hidden = hidden, runner.run(block, hidden)
            if not torch.equal(before[0], hidden[0]):
                found.discard(block)
    return found


def _bias(subject: PrunableModel, unit: Unit) -> Tensor:
    view = subject.views[unit.name]
    assert isinstance(view, StructuredView)
    return view.structures.bias(view.read())


def _weights(subject: PrunableModel, shape: Shape) -> dict[str, Tensor]:
    """Return the state of the new model, by its names."""
    state = dict(subject.model.state_dict())
    names = {id(parameter): name for name, parameter in subject.model.named_parameters()}
    for unit_name, kept in shape.kept.items():
        view = subject.views[unit_name]
        assert isinstance(view, StructuredView)
        for part in view.parts:
            layer = names[id(part.linear.weight)].removesuffix("weight")
            state.update((layer + name, of) for name, of in part.narrowed(kept).items())
    prefix = subject.prefix + "."
    moved = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(shape.blocks)}
    weights = {}
    for name, value in state.items():
        block = f"{prefix}{name.removeprefix(prefix).partition('.')[0]}."
        if not name.startswith(prefix):
            weights[name] = value
        elif block in moved:
            weights[moved[block] + name.removeprefix(block)] = value
    return weights


def _config(subject: PrunableModel, shape: Shape) -> Any:
    """Return the model's configuration with the new widths and biases."""
    config: Any = copy.deepcopy(subject.model.config)
    text = config.get_text_config()
    for name, value in vars(text).items():  # layer types and the like: one entry a block
        if isinstance(value, (list, tuple)) and len(value) == len(subject.blocks):
            setattr(text, name, [value[block] for block in shape.blocks])
    text.num_hidden_layers = len(shape.blocks)
    roles = subject.linear_roles()
    for name, kept in shape.kept.items():
        unit, view = subject.layout[subject.layout.position(name)], subject.views[name]
        assert isinstance(view, StructuredView)
        if len(kept) == unit.count:
            continue
        if unit.role == "attention":
            made = {roles[part.linear] for part in view.parts}
            _fewer_heads(text, _text(subject), Fraction(len(kept), unit.count), "k" in made)
        else:
            _fewer_channels(text, len(kept), shape.blocks.index(unit.block))
    biased = {role for linear, role in roles.items() if linear.bias is not None}
    for switch, role in _BIASES.items():
        if hasattr(text, switch) and role in biased:
            setattr(text, switch, True)
    return config


def _fewer_heads(text: Any, dense: Any, share: Fraction, keys_too: bool) -> None:
    """Write into a configuration that a share of the heads stays."""
    text.head_dim = getattr(dense, "head_dim", None) or (
        dense.hidden_size // dense.num_attention_heads
    )
    text.num_attention_heads = int(dense.num_attention_heads * share)
    if keys_too and hasattr(dense, "num_key_value_heads"):
        text.num_key_value_heads = int(n_groups(dense) * share)


def _fewer_channels(text: Any, number: int, place: int) -> None:
    """Write into a configuration how many channels the feed-forward at one place keeps."""
    for name in _WIDTHS:
        if isinstance(widths := getattr(text, name, None), (list, tuple)):
            setattr(text, name, [*widths[:place], number, *widths[place + 1 :]])
        elif hasattr(text, name):
            setattr(text, name, number)
