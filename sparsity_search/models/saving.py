"""Saving a model as a folder that `from_pretrained` loads: whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsity_search.artefacts import atomic_folder


def save_checkpoint(model: PreTrainedModel, tokenizer: Any, folder: Path | str) -> None:
    """Write weights (safetensors), configuration and tokenizer; reloading gives equal logits.

    Args:
        model: The model; its weights keep their number type.
        tokenizer: Its tokenizer.
        folder: Replaced if it exists, and only once everything is written.
    """
    with atomic_folder(Path(folder)) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
