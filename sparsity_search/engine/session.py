"""Sessions: the model, its prunable units and the text, the start of almost every job."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsity_search.config.schema import DataSection, ModelSection
from sparsity_search.data.sequences import DrawnText, Request, draw_texts
from sparsity_search.data.sources import SAMPLE, parse_source
from sparsity_search.engine.monitor import Monitor
from sparsity_search.errors import ConfigError, SampleTextWarning
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.identity import CONFIG, TOKENIZER
from sparsity_search.models.io.loading import LoadedModel, load_model
from sparsity_search.models.running.statistics_cache import StatisticsCache
from sparsity_search.registry import UNITS

#: Packages that results depend on.
_PACKAGES = ("sparsity-search", "torch", "transformers", "optuna", "numpy", "datasets")


@dataclass(frozen=True)
class Session:
    """A loaded model and its text.

    Attributes:
        loaded: The model with its tokenizer.
        subject: The prunable units of the model.
        drawn: The text of each purpose.
    """

    loaded: LoadedModel
    subject: PrunableModel
    drawn: dict[str, DrawnText]

    @cached_property
    def text(self) -> dict[str, Tensor]:
        """Token ids by purpose, ``(n_sequences, length)`` int64 each."""
        return {purpose: text.tokens for purpose, text in self.drawn.items()}

    @cached_property
    def model_facts(self) -> dict[str, Any]:
        """Name, revision and digests of the model and its tokenizer, and what is left alone."""
        source = self.loaded.source
        left = (
            {"tensors": len(source.left_alone), "weights": source.n_left_alone} if source else {}
        )
        return {
            "name": self.loaded.name,
            "revision": self.loaded.revision,
            "digest": self.loaded.digest,
            "config": self.loaded.identity[CONFIG],
            "tokenizer": self.loaded.identity[TOKENIZER],
            "dtype": str(self.loaded.model.dtype),
            **({"left_alone": left} if any(left.values()) else {}),
        }

    @property
    def hidden_size(self) -> int | None:
        """Size of the model's hidden states; None if its configuration does not say."""
        return getattr(self.loaded.model.config.get_text_config(), "hidden_size", None)

    @property
    def types(self) -> str:
        """Number types and device of the model, in words."""
        model, saved_as = self.loaded.model, self.loaded.saved_as
        computed, saved = (str(dtype).removeprefix("torch.") for dtype in (model.dtype, saved_as))
        return f"computed in {computed} on {model.device}, saved as {saved}"

    def check_same_model(self, record: Any, what: str) -> None:
        """Check that a file was measured on this model, as far as it records one.

        Weights of another number type are not compared.

        Args:
            record: What the file says of its model, like `model_facts`; None if it says nothing.
            what: The file, for the message.

        Raises:
            ConfigError: It was measured on another model; names what differs.
        """
        if not isinstance(record, Mapping):  # none, or of another tool
            return
        now = self.model_facts
        same_type = record.get("dtype") == now["dtype"]
        keys = ("config", "tokenizer", *(("digest",) if same_type else ()))
        differing = [key for key in keys if key in record and record[key] != now[key]]
        if differing:
            told = ", ".join(f"{key} ({record[key]} → {now[key]})" for key in differing)
            raise ConfigError(f"{what} is of another model, these differ: {told}; measure it anew")

    def describe_origin(self, command: Sequence[str]) -> dict[str, Any]:
        """Return the command, time, versions, threads, device and dtype, for artefacts.

        Args:
            command: The command line.
        """
        model = self.loaded.model
        return {
            "command": shlex.join(command),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _list_versions(),
            "threads": torch.get_num_threads(),
            "device": str(model.device),
            "dtype": str(model.dtype),
        }

    @cached_property
    def text_facts(self) -> dict[str, dict[str, Any]]:
        """Facts about the text of each purpose, for artefacts."""
        return {purpose: text.describe() for purpose, text in self.drawn.items()}


def _list_versions() -> dict[str, str]:
    """Return the versions of the installed packages that results depend on."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # an extra
            versions[name] = version(name)
    return versions


def open_session(
    model: ModelSection,
    requests: Sequence[Request],
    seed: int,
    monitor: Monitor,
    *,
    units: str | None = None,
    statistics: str | None = None,
) -> Session:
    """Load the model and draw the text.

    Args:
        model: Section of the configuration about the model.
        requests: Requests for text.
        seed: Seed of text that the model generates.
        monitor: Monitor of the job.
        units: Kind of the units; by default that of ``model``, or single weights.
        statistics: Folder for statistics of the dense model's inputs; None keeps nothing.

    Raises:
        UnknownNameError: There is no such kind of units.
        DataError: A source is missing or too short; a missing one is reported before any work.
        ModelError: The model cannot be loaded, has nothing to prune, or cannot be run block by
            block.
        ConfigError: The folder cannot be made.
    """
    folder = None if statistics is None else _make_folder(Path(statistics).expanduser())
    kind = units or model.units or "weights"
    UNITS.get(kind)
    for request in requests:
        parse_source(request.source)
    with monitor.step("load model"):
        loaded = load_model(
            model.name,
            revision=model.revision,
            dtype=model.dtype,
            device=model.device,
            trust_remote_code=model.trust_remote_code,
            blocks=model.blocks,
            offload=model.offload,
        )
        kept = None if folder is None else StatisticsCache(folder, loaded.identity)
        subject = PrunableModel(
            loaded.model,
            model.exclude,
            kind,
            kept=kept,
            roles=model.roles,
            saved_as=loaded.saved_as,
        )
        _ = subject.flow  # blocks that cannot run one by one are refused before any work
    if any(request.source == SAMPLE for request in requests):
        warnings.warn(
            f"the text {SAMPLE!r} of the package is used: one like those that the model will "
            "read gives better profiles (--calibration file:PATH or hub:NAME)",
            SampleTextWarning,
            stacklevel=2,
        )
    with monitor.step("draw text"):
        fitting = [replace(r, length=cap_length(r.length, loaded)) for r in requests]
        drawn = draw_texts(fitting, loaded, seed)
    return Session(loaded, subject, drawn)


def _make_folder(statistics: Path) -> Path:
    """Make the folder for statistics, and return it."""
    try:
        statistics.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data.statistics {statistics}: {error.strerror}") from error
    return statistics


def request_calibration(data: DataSection) -> Request:
    """Return the request for calibration text."""
    return Request(
        "calibration",
        data.calibration,
        data.calibration_sequences,
        data.calibration_length,
        data.special_tokens,
    )


def request_search_text(data: DataSection) -> list[Request]:
    """Return the requests of a search: calibration, search and final text."""
    search, final = data.search_text or data.calibration, data.final_text or data.calibration
    special = data.special_tokens
    return [
        request_calibration(data),
        Request("search", search, data.search_sequences, data.search_length, special),
        Request("final", final, data.final_sequences, data.final_length, special),
    ]


def cap_length(length: int, loaded: LoadedModel) -> int:
    """Return the length of sequences: ``length``, but at most the model's context."""
    config = loaded.model.config.get_text_config()
    return min(length, getattr(config, "max_position_embeddings", None) or length)
