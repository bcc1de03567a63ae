"""Uploading of a checkpoint to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from sparsity_search.errors import ConfigError, MachineError
from sparsity_search.models.io.locating import shorten


def check_hub(repo: str) -> None:
    """Check, before any work, that a repository's name is legal and that the hub knows the user.

    Raises:
        ConfigError: The name is not legal, or no token is there or accepted.
        MachineError: The hub cannot be reached.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: {shorten(error)}") from error
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigError("--push-to-hub needs a token of the hub: run `hf auth login`") from error
    except HfHubHTTPError as error:
        raise ConfigError(f"the hub refuses the token: {shorten(error)}") from error
    except Exception as error:  # no network: the kinds differ between HTTP libraries
        raise MachineError(f"the hub cannot be reached: {shorten(error)}") from error


def publish(folder: Path, repo: str) -> str:
    """Upload a checkpoint's folder in one commit; the repository is made if it is missing.

    A new repository is private.

    Args:
        folder: The checkpoint.
        repo: ``USER/NAME`` on the hub.

    Returns:
        The address of the repository.

    Raises:
        MachineError: The hub refuses the upload, or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Pruned with sparsity-search"
        )
    except Exception as error:  # no network: the kinds differ between HTTP libraries
        raise MachineError(
            f"{folder} is not on the hub: {shorten(error)}; try `hf upload {repo} {folder}`"
        ) from error
    return str(address)
