"""Checking a checkpoint: its zeros against a profile, its tensors against their checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session
from sparsity_search.errors import ConfigError, ModelError
from sparsity_search.models.io.checksums import check_checkpoint, find_nan
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.runs.directory import MATERIALISED, PROFILE


@dataclass(frozen=True)
class VerificationResult:
    """The outcome of `verify`.

    Attributes:
        profile: The profile that the checkpoint has.
        tensors: Number of tensors that are as they were saved; None if no checksums were kept.
    """

    profile: SparsityProfile
    tensors: int | None


def verify(
    config: RunConfig, profile: Path | None = None, *, monitor: Monitor | None = None
) -> VerificationResult:
    """Check that a checkpoint is as it was saved, with exactly the zeros of a profile.

    Tensors are compared with the checksums in the checkpoint's folder, if there are any.

    Args:
        config: The checkpoint.
        profile: The profile's file; by default the one in the checkpoint's folder, or next to it.
        monitor: Watches the job.

    Raises:
        ConfigError: No profile is given or found.
        ModelError: A tensor is not as it was saved, or holds NaN.
        ProfileError: The zeros are others, or the profile is corrupt or of another model.
    """
    folder, monitor = Path(config.model.name).expanduser(), monitor or Monitor()
    stored = PROFILE_JSON.read(profile or find_profile(folder))
    with monitor.step("compare tensors"):
        n_tensors = check_checkpoint(folder)
    kind = stored.get("removes")
    subject = open_session(config.model, [], 0, monitor, units=kind).subject
    expected = SparsityProfile.from_json(subject.layout, stored)
    if (name := find_nan(subject.model)) is not None:
        raise ModelError(f"{name} of {config.model.name} holds NaN")
    subject.verify(expected)
    return VerificationResult(expected, n_tensors)


def read_profile(folder: Path, what: str) -> dict[str, Any]:
    """Return the profile of a checkpoint that this package made, with where it comes from.

    Args:
        folder: The checkpoint.
        what: What needs it, for the message.

    Raises:
        ConfigError: The folder has no profile, or none that names the dense model.
        ProfileError: It is corrupt.
    """
    try:
        file = find_profile(folder)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} has no {PROFILE}: {what} takes checkpoints of prune and search"
        ) from error
    stored = PROFILE_JSON.read(file)
    if file.name == MATERIALISED and (folder / PROFILE).exists():
        # the smaller model's own units, with the origin of the larger one
        stored = {**PROFILE_JSON.read(folder / PROFILE), **stored}
    if not isinstance(stored.get("model"), dict):
        raise ConfigError(f"{file} does not name the dense model: {what} needs it")
    return stored


def find_profile(folder: Path) -> Path:
    """Return the file of a checkpoint's profile, as `prune` and `search` leave it.

    Raises:
        ConfigError: There is none.
    """
    # a materialised checkpoint has other units than the profile that it was pruned to
    for file in (folder / MATERIALISED, folder / PROFILE, folder.parent / PROFILE):
        if file.exists():
            return file
    raise ConfigError(f"there is no {PROFILE} in {folder} or next to it: give --profile")
