"""Saving of a model as a folder that `from_pretrained` loads, complete or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsity_search.utils.files import atomic_folder

#: Largest weight file; a larger model is split into several files with an index.
SHARD = "5GB"


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path | str,
    *,
    card: str | None = None,
    max_shard_size: str = SHARD,
) -> None:
    """Write weights (safetensors), configuration and tokenizer; reloading gives equal logits.

    Tied weights are written once. The generation settings are written next to the configuration.

    Args:
        model: The model; its weights keep their number type.
        tokenizer: Its tokenizer.
        folder: The folder; if it exists, it is replaced once everything is written.
        card: Text of its ``README.md``; None for no such file.
        max_shard_size: Largest weight file; while it is written, it may be in memory.
    """
    with atomic_folder(Path(folder)) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(temporary)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
