"""An adapter of peft merged into a pruned checkpoint, whose zeros stay."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.errors import ConfigError, ModelError
from sparsity_search.models.io.locating import shorten
from sparsity_search.models.io.saving import write_checkpoint
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.recoveries.bases.choosing import choose
from sparsity_search.recoveries.bases.trainable import fill_pattern, list_slots
from sparsity_search.report.card import format_card
from sparsity_search.runs.directory import PROFILE
from sparsity_search.utils.extras import require
from sparsity_search.utils.files import atomic_folder, check_empty
from sparsity_search.workflow.verify import read_profile


@dataclass(frozen=True)
class MergeResult:
    """The outcome of `merge_adapter`.

    Attributes:
        profile: The profile of the checkpoint, before and after.
        filled: Zeros that a plain merge would have filled.
        dropped: Share of the squared change that lay on zeros, and was left out.
    """

    profile: SparsityProfile
    filled: int
    dropped: float


def merge_adapter(
    config: RunConfig,
    adapter: Path,
    out: Path,
    *,
    mask: bool = False,
    monitor: Monitor | None = None,
) -> MergeResult:
    """Merge an adapter into a pruned checkpoint, and write it as another one.

    Args:
        config: The checkpoint as its model.
        adapter: Folder of the adapter.
        out: The folder to write.
        mask: Whether the change is left out where the checkpoint has zeros. This is exact for
            adapters that were trained with `MaskKeeper`; others lose a part of what they learnt.
        monitor: Watches the job.

    Raises:
        ConfigError: The merge would fill zeros, or ``out`` is not empty.
        ModelError: The adapter cannot be read, or is of another model.
        MissingExtraError: peft is not installed.
    """
    require("an adapter", "peft", "peft")
    monitor = monitor or Monitor()
    check_empty(out)
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} is no adapter of peft: it has no adapter_config.json")
    stored = read_profile(Path(config.model.name).expanduser(), "merge-adapter")
    session = open_session(
        config.model, [], config.study.seed, monitor, units=stored.get("removes")
    )
    profile = SparsityProfile.from_json(session.subject.layout, stored)
    session.subject.verify(profile)
    with monitor.step("merge"):
        filled, dropped = _merge(session, adapter, mask)
    session.subject.verify(profile)
    facts = {key: value for key, value in stored.items() if key in _KEPT}
    facts["adapter"] = {"of": session.loaded.digest, "masked": mask, "dropped": dropped}
    with monitor.step("save checkpoint"), atomic_folder(out) as folder:
        loaded, card = session.loaded, format_card(profile, facts)
        write_checkpoint(loaded.model, loaded.tokenizer, folder, base=loaded, card=card)
        PROFILE_JSON.write(folder / PROFILE, {**profile.to_json(), **facts})
    return MergeResult(profile, filled, dropped)


#: Characters of a message of peft that are shown.
_LONGEST = 300
#: Facts of a checkpoint's profile that stay.
_KEPT = ("model", "removes", "pruner", "seed", "text", "recovery")


@torch.no_grad()
def _merge(session: Session, adapter: Path, mask: bool) -> tuple[int, float]:
    """Merge in place; return the zeros that were filled at first, and the share left out.

    Raises:
        ConfigError: Zeros would be filled, and ``mask`` is false.
        ModelError: The adapter does not fit the model.
    """
    from peft import PeftModel

    subject: Any = session.subject
    masks = choose(subject, subject.model).masks
    before = {slot.name: slot.parameter.data.clone() for slot in list_slots(subject.model)}
    try:
        with warnings.catch_warnings():  # of transformers, about calls that peft makes
            warnings.simplefilter("ignore", FutureWarning)
            PeftModel.from_pretrained(subject.model, str(adapter)).merge_and_unload()
    except Exception as error:  # the library raises many kinds
        told = shorten(error)[:_LONGEST]
        raise ModelError(f"{adapter} does not fit {session.loaded.name}: {told}") from error
    slots = {slot.name: slot.parameter for slot in list_slots(subject.model)}
    filled, lost, changed, first = 0, 0.0, 0.0, ""
    for name, kept in masks.items():
        change = slots[name].data.float() - before[name].float()
        n_filled = int(((slots[name].data != 0) & ~kept).sum())
        first = first or (name if n_filled else "")
        filled += n_filled
        changed += float(change.square().sum())
        lost += float(change.masked_fill(kept, 0).square().sum())
        dtype = subject.saved_as or before[name].dtype
        slots[name].data = fill_pattern(slots[name].data, kept, dtype).to(before[name].dtype)
    if filled and not mask:
        n_zeros = sum(int((~kept).sum()) for kept in masks.values())
        raise ConfigError(
            f"merging fills {filled} of {n_zeros} zeros, first in {first}: with --mask the change "
            f"is left out there ({lost / changed:.1%} of its square); train adapters with "
            "MaskKeeper, and nothing is lost"
        )
    return filled, lost / changed if changed else 0.0
