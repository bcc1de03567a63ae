"""The number of experts in a model's configuration, which all of its mixtures share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.whole_experts import ExpertsView

#: Names of the number of experts in configurations.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def configure_count(model: nn.Module, before: int, after: int) -> Any:
    """Return a copy of the model's configuration with another number of experts.

    Raises:
        ModelError: The configuration does not hold the number ``before``.
    """
    config: Any = copy.deepcopy(model.config)
    text = config.get_text_config()
    names = [name for name in _COUNTS if getattr(text, name, None) == before]
    if not names:
        raise ModelError(
            f"the configuration of {type(model).__name__} does not hold the number of experts, "
            f"{before}, so whole experts cannot be removed: choose --units weights"
        )
    for name in names:
        setattr(text, name, after)
    return config


def check_fewer_experts(model: nn.Module, views: Sequence[ExpertsView]) -> None:
    """Check that the architecture has a place for fewer experts, with every tensor in its shape.

    The class is built without memory, with one expert fewer in each group.

    Args:
        model: The dense model.
        views: All of its mixtures.

    Raises:
        ModelError: It has none.
    """
    count, groups = views[0].structures.count, views[0].structures.groups
    config = configure_count(model, count, count - groups)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            smaller: PreTrainedModel = type(model)(config)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"{type(model).__name__} does not support {count - groups} experts: {reason}"
        ) from error
    axes = {id(part.tensor): part.axis for view in views for part in view.parts()}
    made = {name: tuple(tensor.shape) for name, tensor in smaller.state_dict().items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shape = list(tensor.shape)
        if (axis := axes.get(id(tensor))) is not None:
            shape[axis] -= groups
        if made.get(name) != tuple(shape):
            raise ModelError(
                f"{type(model).__name__} with {count - groups} experts has no {name} of the shape "
                f"{'x'.join(map(str, shape))}, so whole experts cannot be removed: choose --units "
                "weights"
            )
