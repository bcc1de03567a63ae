"""Checkpoints whose weights are packed in few bits; they are read and saved as plain numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.errors import ModelError

#: Quantization methods that are read → class of their settings in transformers.
_METHODS = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
#: Ends of the names of packed weights, and of scales of weights or inputs.
_ENDS = re.compile(r"_blocks$|_scales$|_scale_inv$|(?<=\.)(activation|input)_scale$")


@dataclass(frozen=True)
class Packing:
    """How the weights of a checkpoint are packed.

    Attributes:
        method: ``mxfp4``, or ``fp8`` with one scale for each block of a matrix.
        dtype: Number type of the plain weights that they are unpacked to.
        block_size: Rows and columns with one scale.
        skipped: Modules that are not packed, as the configuration names them.
    """

    method: str
    dtype: torch.dtype
    block_size: tuple[int, int]
    skipped: list[str] | None

    @classmethod
    def of(cls, config: Any) -> Packing | None:
        """Return how a configuration says that the weights are packed; None if they are not.

        Raises:
            ModelError: They are packed in a way that is not read.
        """
        settings = getattr(config, "quantization_config", None)
        if not settings:
            return None
        found: dict[str, Any] = settings if isinstance(settings, dict) else settings.to_dict()
        method = str(found.get("quant_method"))
        if method not in _METHODS:
            raise ModelError(
                f"the model is quantized ({method}): give the version with dense weights; of "
                f"packed ones only {' and '.join(_METHODS)} are read"
            )
        rows, columns = found.get("weight_block_size") or (1, 1)
        dtype = getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
        return cls(method, dtype, (rows, columns), found.get("modules_to_not_convert"))

    def build_options(self) -> dict[str, Any]:
        """Return the options of `from_pretrained` that unpack all weights."""
        settings = getattr(transformers, _METHODS[self.method])
        unpacked = settings(dequantize=True, modules_to_not_convert=self.skipped)
        return {"quantization_config": unpacked, "dtype": self.dtype}

    def make_plain(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Make an unpacked model one like any other, in the number type ``dtype``.

        Raises:
            ModelError: Some weights are still packed.
        """
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or parameter.element_size() < 2:
                raise ModelError(
                    f"the weights {name} stay packed when loaded: give the version with dense "
                    "weights"
                )
            if parameter.dtype == self.dtype:
                parameter.data = parameter.data.to(dtype)
        # else `save_pretrained` would use the names of the packed weights
        model._weight_conversions = None

    def choose_weights(self, names: Iterable[str]) -> list[str]:
        """Return the names of tensors that are weights, without those of scales.

        Raises:
            ModelError: One is in MXFP4, which is unpacked only within a model.
        """
        weights = []
        for name in names:
            if name.endswith("_blocks"):
                raise ModelError(f"the packed weights {name} are no part of the model's class")
            if find_plain_name(name) == name:
                weights.append(name)
        return weights


def find_plain_name(name: str) -> str:
    """Return the name of the weight that a tensor of a checkpoint belongs to.

    >>> find_plain_name("up_proj.weight_scale_inv"), find_plain_name("experts.down_proj_blocks")
    ('up_proj.weight', 'experts.down_proj')
    """
    return _ENDS.sub("", name)


def dequantize_blocks(weight: Tensor, scale: Tensor, block_size: tuple[int, int]) -> Tensor:
    """Return a matrix whose blocks have one scale each, in float32.

    Args:
        weight: ``(rows, columns)``, of any number type.
        scale: ``(blocks of rows, blocks of columns)``; the last blocks may be smaller.
        block_size: Rows and columns of a block.
    """
    rows, columns = weight.shape
    full = scale.float()
    for axis, size in enumerate(block_size):
        full = full.repeat_interleave(size, dim=axis)
    return weight.float() * full[:rows, :columns]
