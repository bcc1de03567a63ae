"""A materialised checkpoint compared with the dense model: size and speed."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsity_search.engine.session import Session
from sparsity_search.errors import PaddingWarning
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.materialise import MaterialisedShape, predict_padding
from sparsity_search.profiles.profile import SparsityProfile

#: Tokens of the speed test, and how often each model runs them.
_TOKENS, _REPEATS = 512, 5


def warn_of_padding(subject: PrunableModel, profile: SparsityProfile, multiple: int) -> None:
    """Warn, before any work, if removed structures will stay in the checkpoint as zeros.

    Args:
        subject: The model to prune.
        profile: The profile to prune it to.
        multiple: Feed-forward widths are rounded up to a multiple of this number.
    """
    removed, padding = profile.n_removed, predict_padding(subject, profile, multiple)
    if not padding:
        return
    told = f"leaves {padding} of {removed} removed weights ({padding / removed:.1%}) as zeros"
    if padding == removed:
        told = "makes nothing smaller"
    least = predict_padding(subject, profile, 1)
    remedy = f"; --multiple-of 1 leaves {least} as zeros" if least < padding else ""
    warnings.warn(
        f"--materialise {told}: all blocks have the width that the fullest one needs, rounded up "
        f"to --multiple-of {multiple} in the feed-forward{remedy}",
        PaddingWarning,
        stacklevel=2,
    )


def compare_with_dense(
    session: Session, smaller: PreTrainedModel, shape: MaterialisedShape | None, out: Path
) -> dict[str, Any]:
    """Return a profile of the smaller model, and both models' figures.

    Args:
        session: The dense model and its text.
        smaller: The model that was saved.
        shape: Its shape; None if nothing is padded.
        out: Its folder.
    """
    was = session.subject
    blocks = f"^{re.escape(was.prefix)}$"
    subject = PrunableModel(
        smaller, _match_excluded(was, shape), was.units, blocks, roles=was.roles
    )
    dense = session.loaded.model
    tokens = session.text["calibration"][:1, :_TOKENS]
    speed = measure_speed([dense, smaller], tokens)
    files = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return {
        **subject.zeros().to_json(),
        "removes": subject.units,
        "one_width_a_block": shape is not None and shape.per_block,
        "padding": 0 if shape is None else shape.padding,
        "blocks": {"dense": len(session.subject.blocks), "materialised": len(subject.blocks)},
        "parameters": {"dense": dense.num_parameters(), "materialised": smaller.num_parameters()},
        "bytes": {
            "dense": dense.num_parameters() * session.loaded.saved_as.itemsize,
            "materialised": files,
        },
        "tokens_per_second": dict(zip(("dense", "materialised"), speed, strict=True)),
    }


def _match_excluded(was: PrunableModel, shape: MaterialisedShape | None) -> str | None:
    """Return an expression for the excluded units in the smaller model, whose blocks move up."""
    kept = range(len(was.blocks)) if shape is None else shape.blocks
    names = []
    for name in was.excluded:
        block, dot, rest = name.removeprefix(f"{was.prefix}.").partition(".")
        if int(block) in kept:
            names.append(re.escape(f"{was.prefix}.{kept.index(int(block))}{dot}{rest}"))
    return f"^({'|'.join(names)})$" if names else None


def measure_speed(models: Sequence[PreTrainedModel], tokens: Tensor) -> list[dict[str, float]]:
    """Return median and range of each model's speed in forward passes, taken in turns."""
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for repeat in range(_REPEATS + 1):
            for model, found in zip(models, seconds, strict=True):
                started = time.monotonic()
                model(input_ids=tokens.to(model.device), use_cache=False).logits.sum().item()
                if repeat:  # the first one warms up
                    found.append(tokens.numel() / (time.monotonic() - started))
    return [{"median": median(found), "min": min(found), "max": max(found)} for found in seconds]
