"""The class that a model is loaded as: one that has all its parts."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from sparsity_search.errors import ModelError


def find_class(config: Any) -> Any:
    """Return the class with whose `from_pretrained` a language model is loaded.

    A composite model, such as one with a vision tower, is loaded as the class that its
    configuration names. The automatic class for language models would leave parts out.

    Args:
        config: Its configuration.

    Raises:
        ModelError: It is no language model of transformers, and no code comes with it.
    """
    names = config.architectures or ()
    if config.get_text_config() is not config:
        for named in (getattr(transformers, name, None) for name in names):
            if isinstance(named, type) and issubclass(named, PreTrainedModel):
                return named
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "auto_map", None):
        return AutoModelForCausalLM
    named = f" ({names[0]} in config.json)" if names else ""
    raise ModelError(
        f"transformers {transformers.__version__} has no language model for the type "
        f"{config.model_type}{named}: install a version that has, or give the language model as a "
        f"checkpoint of its own"
    )


def build_empty(model_class: Any, config: Any, *, trust_remote_code: bool) -> nn.Module:
    """Return a model without weights, on the meta device."""
    with torch.device("meta"):
        if model_class is not AutoModelForCausalLM:
            return model_class(config)  # type: ignore[no-any-return]
        empty: nn.Module = model_class.from_config(config, trust_remote_code=trust_remote_code)
        return empty
