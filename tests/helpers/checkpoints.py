"""Checkpoints in the layouts of releases, made by hand from tiny plain ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.families import FAMILIES
from sparsity_search.testing.models import tiny_tokenizer

#: The numbers of four bits E2M1, by their code.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def save_family(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the tiny model of a family, and return its folder."""
    if not FAMILIES[name].is_available():
        pytest.skip(f"this release of transformers has no {FAMILIES[name].architecture}")
    model = FAMILIES[name].make()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    save_checkpoint(model, tiny_tokenizer(), folder)
    return folder


def read_tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def rewrite(folder: Path, tensors: dict[str, Tensor], **fields: Any) -> None:
    """Replace the tensors of a checkpoint, and set fields of its configuration."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**read_config(folder), **fields}))


def add_prediction_layer(folder: Path) -> None:
    """Add a layer of multi-token prediction, as in the releases of GLM-4.5 and DeepSeek-V3."""
    tensors, n_layers = read_tensors(folder), read_config(folder)["num_hidden_layers"]
    last, extra = f"model.layers.{n_layers - 1}.", f"model.layers.{n_layers}."
    copies = {n.replace(last, extra): t + 1 for n, t in tensors.items() if n.startswith(last)}
    copies[f"{extra}eh_proj.weight"] = torch.ones(64, 128, dtype=torch.bfloat16)
    rewrite(folder, {**tensors, **copies}, num_nextn_predict_layers=1)


def pack_fp8(folder: Path, block: int = 16) -> dict[str, Tensor]:
    """Pack all projections in FP8 with a scale a block; return the numbers that they mean."""
    packed, meant = {}, {}
    for name, tensor in read_tensors(folder).items():
        packed[name], meant[name] = tensor, tensor
        if tensor.dim() == 2 and name.endswith("_proj.weight"):
            rows, columns = tensor.shape
            grid = tensor.float().reshape(rows // block, block, columns // block, block)
            scale = grid.abs().amax(dim=(1, 3)) / 448
            full = scale.kron(torch.ones(block, block))
            packed[name] = (tensor.float() / full).to(torch.float8_e4m3fn)
            packed[f"{name}_scale_inv"] = scale
            meant[name] = (packed[name].float() * full).to(torch.bfloat16)
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    rewrite(folder, packed, quantization_config={**settings, "weight_block_size": [block, block]})
    return meant


def pack_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Pack all experts of a GPT-OSS in MXFP4; return the numbers that they mean."""
    packed, meant = {}, {}
    for name, tensor in read_tensors(folder).items():
        packed[name] = meant[name] = tensor
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            del packed[name]
            groups = tensor.float().mT.unflatten(-1, (-1, 32))  # 32 inputs have one scale
            exponent = (groups.abs().amax(dim=-1, keepdim=True) / 6).log2().ceil()
            codes = (groups[..., None] / 2 ** exponent[..., None] - E2M1).abs().argmin(dim=-1)
            packed[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
            packed[f"{name}_scales"] = (exponent[..., 0] + 127).to(torch.uint8)
            values = E2M1[codes] * 2**exponent
            meant[name] = values.flatten(-2).mT.contiguous().to(torch.bfloat16)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    rewrite(folder, packed, quantization_config=settings)
    return meant


@torch.inference_mode()
def compute_logits(model: nn.Module) -> Tensor:
    logits: Tensor = model(input_ids=torch.arange(3, 51).reshape(2, 24), use_cache=False).logits
    return logits
