"""Saving a model as a folder that `from_pretrained` loads: whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsity_search.utils.files import atomic_folder

#: Largest file of weights; more go into several, with an index.
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

    Tied weights are written once, and the settings of generation beside the configuration.

    Args:
        model: The model; its weights keep their number type.
        tokenizer: Its tokenizer.
        folder: Replaced if it exists, and only once everything is written.
        card: Text of its ``README.md``, if it is to have one.
        max_shard_size: Largest file of weights; while one is written it may be in memory.
    """
    with atomic_folder(Path(folder)) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(temporary)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
