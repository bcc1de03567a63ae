"""One family of models, made as a tiny random one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

#: Number of experts in mixtures.
N_EXPERTS = 4


@dataclass(frozen=True)
class Family:
    """A family of models, and the configuration of a tiny one.

    Attributes:
        label: Name of the family in tables.
        architecture: Name of the model's class in transformers.
        fields: Fields of its configuration.
    """

    label: str
    architecture: str
    fields: Mapping[str, Any]

    def is_available(self) -> bool:
        """Return whether this release of transformers has the model's class."""
        return hasattr(transformers, self.architecture)

    def make(self, seed: int = 0) -> PreTrainedModel:
        """Return the random model; the global random state does not change.

        Parameters and buffers that begin with one value everywhere (zero biases, norms of one)
        get noise, so that the loss of one shows in the logits.
        """
        model_class = getattr(transformers, self.architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = model_class(model_class.config_class(**self.fields))
            for tensor in model.state_dict().values():
                if tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
                    _vary(tensor)
        return model.eval().requires_grad_(False)


def _vary(tensor: Tensor) -> None:
    if tensor.is_floating_point():
        tensor.add_(0.1 * torch.randn_like(tensor))
    else:  # the experts of each token, in DeepSeek-V4
        tensor.random_(0, N_EXPERTS)
