"""Saving of a model as a folder that `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsity_search.models.io.checksums import write_checksums
from sparsity_search.models.io.completing import check_nothing_is_lost, complete_checkpoint
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.utils.files import atomic_folder

#: Largest weight file; a larger model is split into several files with an index.
SHARD = "5GB"


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path | str,
    *,
    base: LoadedModel | None = None,
    card: str | None = None,
    max_shard_size: str = SHARD,
) -> None:
    """Write a folder as `write_checkpoint` does, complete or not at all.

    If it exists, it is replaced once everything is written.

    Raises:
        ConfigError: Another process is writing the same folder.
    """
    with atomic_folder(Path(folder)) as temporary:
        write_checkpoint(
            model, tokenizer, temporary, base=base, card=card, max_shard_size=max_shard_size
        )


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    *,
    base: LoadedModel | None = None,
    card: str | None = None,
    max_shard_size: str = SHARD,
) -> None:
    """Write weights (safetensors), configuration and tokenizer; reloading gives equal logits.

    Tied weights are written once. The generation settings are written next to the configuration,
    and the checksums of all tensors, see `check_checkpoint`. With a base, the checkpoint has all
    tensors, number types, class and other files of the base.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: The folder, which exists.
        base: The model that was loaded and pruned; None for one that was made in memory, whose
            weights keep their number type.
        card: Text of its ``README.md``; None for no such file.
        max_shard_size: Largest weight file; while it is written, it may be in memory.

    Raises:
        ModelError: A tensor would be lost.
    """
    source = None if base is None else base.source
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    if base is not None and source is not None:
        complete_checkpoint(folder, model, source, reshaped=base.model is not model)
    check_nothing_is_lost(folder, model, source.left_alone if source else ())
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    write_checksums(folder)
