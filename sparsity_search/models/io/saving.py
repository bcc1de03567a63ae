"""Saving of a model as a folder that `from_pretrained` loads."""

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
    """Write a folder as `write_checkpoint` does, complete or not at all.

    If it exists, it is replaced once everything is written.

    Raises:
        ConfigError: Another process is writing the same folder.
    """
    with atomic_folder(Path(folder)) as temporary:
        write_checkpoint(model, tokenizer, temporary, card=card, max_shard_size=max_shard_size)


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    *,
    card: str | None = None,
    max_shard_size: str = SHARD,
) -> None:
    """Write weights (safetensors), configuration and tokenizer; reloading gives equal logits.

    Tied weights are written once. The generation settings are written next to the configuration.

    Args:
        model: The model; its weights keep their number type.
        tokenizer: Its tokenizer.
        folder: The folder, which exists.
        card: Text of its ``README.md``; None for no such file.
        max_shard_size: Largest weight file; while it is written, it may be in memory.
    """
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
