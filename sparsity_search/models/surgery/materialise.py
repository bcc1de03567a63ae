"""Conversion of a model with empty structures into a smaller one without them.

The result has the same class, so that `from_pretrained` loads its checkpoint. Most architectures
have one feed-forward width and one number of heads for all blocks. Then every block keeps as many
structures as the fullest one, with zeros as padding. If the configuration has a feed-forward
width for each block, each block keeps its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.evidence.structures import select_fullest
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.sublayers import count_key_value_heads
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.surgery.fewer_experts import resize_experts
from sparsity_search.models.surgery.rebuild import rebuild
from sparsity_search.profiles.layout import Unit
from sparsity_search.profiles.profile import SparsityProfile

#: Switch for biases in configurations → role of a layer that it gives a bias.
_BIASES = {"attention_bias": "o", "mlp_bias": "down"}
#: Names of the feed-forward width in configurations.
_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
#: Number of tokens on which an empty block is tested.
_TRIED = 8


@dataclass(frozen=True, kw_only=True)
class MaterialisedShape:
    """Blocks and structures that a materialised model keeps.

    Attributes:
        blocks: Indices of the kept blocks, in order.
        kept: For each unit of these blocks, the indices of the kept structures, ``(n,)`` int64,
            ascending.
        padding: Number of weights that are kept although they are zero.
        per_block: Whether every block has its own feed-forward width.
    """

    blocks: tuple[int, ...]
    kept: Mapping[str, Tensor]
    padding: int
    per_block: bool


def prepare_for_saving(subject: PrunableModel) -> PreTrainedModel:
    """Return the model in a form that `from_pretrained` loads.

    The result is the model itself, unless pruning added biases or removed experts.

    Raises:
        ModelError: Pruning added a bias for which the architecture has no place, or the mixtures
            keep different numbers of experts.
    """
    views = subject.views.values()
    if any(isinstance(view, StructuredView) and view.gained_bias for view in views):
        return materialise(subject, keep_everything(subject))
    return resize_experts(subject)


def keep_everything(subject: PrunableModel) -> MaterialisedShape:
    """Return the shape that keeps everything, for a model whose pruner only added biases."""
    kept = {unit.name: torch.arange(unit.count) for unit in subject.layout}
    return MaterialisedShape(
        blocks=tuple(range(len(subject.blocks))), kept=kept, padding=0, per_block=False
    )


def plan(subject: PrunableModel, multiple: int = 1) -> MaterialisedShape:
    """Return the shape of a pruned model without its empty structures.

    Args:
        subject: The pruned model; its units are structures.
        multiple: Feed-forward widths are rounded up to a multiple of this number.

    Raises:
        ModelError: The units are single weights, or every block is empty.
    """
    empty = {unit.name: _find_empty(subject, unit) for unit in subject.layout}
    gone = _find_removed_blocks(subject, empty)
    blocks = tuple(b for b in range(len(subject.blocks)) if b not in gone)
    if not blocks:
        raise ModelError("every block is removed: nothing is left to materialise")
    units = [unit for unit in subject.layout if unit.block in blocks]
    needed = {unit.name: int((~empty[unit.name]).sum()) for unit in units}
    per_block = _has_own_widths(subject)
    widths = _choose_widths(units, needed, multiple, per_block)
    kept = {name: select_fullest(empty[name], width) for name, width in widths.items()}
    padding = sum((widths[unit.name] - needed[unit.name]) * unit.cost for unit in units)
    return MaterialisedShape(blocks=blocks, kept=kept, padding=padding, per_block=per_block)


def predict_padding(subject: PrunableModel, profile: SparsityProfile, multiple: int) -> int:
    """Return the padding of `plan` in weights, for a model that is not pruned yet.

    Args:
        subject: The model; its units are structures.
        profile: Structures to remove from each unit.
        multiple: Feed-forward widths are rounded up to a multiple of this number.
    """
    needed = {u.name: u.count - r for u, r in zip(subject.layout, profile.removed, strict=True)}
    alive = {unit.block for unit in subject.layout if needed[unit.name]}
    units = [unit for unit in subject.layout if unit.block in alive]
    widths = _choose_widths(units, needed, multiple, _has_own_widths(subject))
    return sum((widths[unit.name] - needed[unit.name]) * unit.cost for unit in units)


def _has_own_widths(subject: PrunableModel) -> bool:
    """Whether the configuration has a feed-forward width for each block."""
    width = getattr(_get_text_config(subject), "intermediate_size", None)
    return isinstance(width, (list, tuple))


def _choose_widths(
    units: Sequence[Unit], needed: Mapping[str, int], multiple: int, per_block: bool
) -> dict[str, int]:
    """Return the structures that each unit keeps: as many as the fullest unit of its role needs.

    Args:
        units: Units of the kept blocks.
        needed: Structures of each unit that are not empty.
        multiple: Feed-forward widths are rounded up to a multiple of this number.
        per_block: Whether every block has its own feed-forward width.
    """
    widths = {}
    for unit in units:
        own = per_block and unit.role == "feed_forward"
        alike = [unit] if own else [other for other in units if other.role == unit.role]
        most = max(1, *(needed[other.name] for other in alike))
        step = multiple if unit.role == "feed_forward" else 1
        widths[unit.name] = min(-(-most // step) * step, unit.count)
    return widths


def materialise(subject: PrunableModel, shape: MaterialisedShape) -> PreTrainedModel:
    """Return a new model of the same class with only the kept blocks and structures.

    Its logits equal those of the pruned model up to rounding.

    Args:
        subject: The pruned model; not modified.
        shape: The shape, from `plan`.

    Raises:
        ModelError: The architecture does not support this shape, or a bias that pruning added.
    """
    weights = _build_state(subject, shape)
    model: Any = subject.model
    try:
        return rebuild(model, _build_config(subject, shape), weights)
    except (RuntimeError, ValueError) as error:  # from torch and configurations
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"{type(model).__name__} does not support this shape: {reason}"
        ) from error


def _get_text_config(subject: PrunableModel) -> Any:
    return subject.model.config.get_text_config()  # type: ignore[operator, union-attr]


def _find_empty(subject: PrunableModel, unit: Unit) -> Tensor:
    view = subject.views[unit.name]
    if not isinstance(view, StructuredView):
        raise ModelError("only structures can be materialised, not single weights")
    return view.structures.empty(view.read()).cpu()


def _find_removed_blocks(subject: PrunableModel, empty: Mapping[str, Tensor]) -> set[int]:
    """Return the blocks whose units are all empty and that have no effect.

    The effect is tested, because a block may have other parts, such as a norm after its output.
    """
    removed = {
        block
        for block in range(len(subject.blocks))
        if (units := subject.units_of(block))
        and all(empty[unit.name].all() and not _read_bias(subject, unit).any() for unit in units)
    }
    if removed:
        runner = BlockRunner(subject, torch.arange(_TRIED)[None])
        hidden = runner.embed()
        for block in range(len(subject.blocks)):
            before, hidden = hidden, runner.run(block, hidden)
            if not torch.equal(before[0].hidden, hidden[0].hidden):
                removed.discard(block)
    return removed


def _read_bias(subject: PrunableModel, unit: Unit) -> Tensor:
    view = subject.views[unit.name]
    assert isinstance(view, StructuredView)
    return view.structures.bias(view.read())


def _build_state(subject: PrunableModel, shape: MaterialisedShape) -> dict[str, Tensor]:
    """Return the state dict of the new model."""
    state = dict(subject.model.state_dict())
    names = {id(parameter): name for name, parameter in subject.model.named_parameters()}
    for unit_name, kept in shape.kept.items():
        view = subject.views[unit_name]
        assert isinstance(view, StructuredView)
        for part in view.parts:
            layer = names[id(part.linear.weight)].removesuffix("weight")
            state.update((layer + name, of) for name, of in part.narrowed(kept).items())
    prefix = subject.prefix + "."
    renamed = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(shape.blocks)}
    weights = {}
    for name, value in state.items():
        block = f"{prefix}{name.removeprefix(prefix).partition('.')[0]}."
        if not name.startswith(prefix):
            weights[name] = value
        elif block in renamed:
            weights[renamed[block] + name.removeprefix(block)] = value
    return weights


def _build_config(subject: PrunableModel, shape: MaterialisedShape) -> Any:
    """Return the model's configuration with the new widths and biases."""
    config: Any = copy.deepcopy(subject.model.config)
    text = config.get_text_config()
    for name, value in vars(text).items():  # e.g. layer types: one entry per block
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
            own_roles = {roles[part.linear] for part in view.parts}
            _set_heads(
                text, _get_text_config(subject), Fraction(len(kept), unit.count), "k" in own_roles
            )
        else:
            _set_channels(text, len(kept), shape.blocks.index(unit.block))
    biased = {role for linear, role in roles.items() if linear.bias is not None}
    for switch, role in _BIASES.items():
        if hasattr(text, switch) and role in biased:
            setattr(text, switch, True)
    return config


def _set_heads(text: Any, dense: Any, share: Fraction, keys_too: bool) -> None:
    """Set the numbers of heads in a configuration when a share of them is kept."""
    text.head_dim = getattr(dense, "head_dim", None) or (
        dense.hidden_size // dense.num_attention_heads
    )
    text.num_attention_heads = int(dense.num_attention_heads * share)
    if keys_too and hasattr(dense, "num_key_value_heads"):
        text.num_key_value_heads = int(count_key_value_heads(dense) * share)


def _set_channels(text: Any, number: int, place: int) -> None:
    """Set the feed-forward width of one block in a configuration."""
    for name in _WIDTHS:
        if isinstance(widths := getattr(text, name, None), (list, tuple)):
            setattr(text, name, [*widths[:place], number, *widths[place + 1 :]])
        elif hasattr(text, name):
            setattr(text, name, number)
