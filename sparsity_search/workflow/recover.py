"""Recovery of a pruned checkpoint: its kept weights are trained, its zeros stay."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.errors import ConfigError, DataError, RunMismatchError
from sparsity_search.interfaces.recovery import Recovered, Recovery, RecoveryProblem
from sparsity_search.models.io.checksums import CHECKSUMS
from sparsity_search.models.io.saving import write_checkpoint
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.registry import EVALUATORS, RECOVERIES, Factory, describe
from sparsity_search.report.card import format_card
from sparsity_search.runs.directory import PROFILE
from sparsity_search.utils.files import (
    atomic_file,
    atomic_folder,
    check_empty,
    check_fingerprint,
    compute_digest,
    compute_file_digest,
    write_json,
)
from sparsity_search.utils.reading import read_json
from sparsity_search.workflow.verify import read_profile

#: Names of the texts in the profile, beside those that the pruner read.
_TEXTS = {"recovery": "recovery", "held_out": "recovery_held_out", "final": "recovery_final"}
#: Time kept for saving, as a multiple of that of the first score.
_KEPT = 1.5


@dataclass(frozen=True, kw_only=True)
class RecoveryResult:
    """The outcome of `recover`.

    Attributes:
        profile: The profile of the checkpoint, before and after.
        types: Number types and device.
        recovered: What the method brought on its held-out text.
        perplexity: Of the pruned and of the recovered model, on the final text.
    """

    profile: SparsityProfile
    types: str
    recovered: Recovered
    perplexity: tuple[float, float]


class ProgressFolder:
    """Parts of a recovery in a folder, so that an interrupted one goes on there.

    Args:
        path: The folder.
        fingerprint: What the parts depend on.

    Raises:
        RunMismatchError: The folder has parts of another recovery.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        file = path / "recovery.json"
        if file.exists():
            stored = read_json(file)
            if not isinstance(stored, dict):
                raise RunMismatchError(f"{file} is damaged: remove {path}")
            check_fingerprint(stored, fingerprint, f"the unfinished recovery in {path}")
        self._fingerprint, self._file = dict(fingerprint), file

    def load(self, part: str) -> dict[str, Tensor] | None:
        """Return the tensors of a part by name; None if it is not there."""
        file = self.path / f"{part}.safetensors"
        return load_file(file) if file.exists() else None

    def keep(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a part."""
        if not self._file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._fingerprint)
        with atomic_file(self.path / f"{part}.safetensors") as file:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def recover(
    config: RunConfig,
    out: Path,
    *,
    dense: str | None = None,
    minutes: float | None = None,
    replace: bool = False,
    monitor: Monitor | None = None,
) -> RecoveryResult:
    """Train the kept weights of a pruned checkpoint, and write it as another one.

    Args:
        config: The checkpoint as its model, its recovery, and its text.
        out: The folder to write.
        dense: The dense model; by default the one that the checkpoint's profile names.
        minutes: Time of the whole job; without it, the steps of the method limit it.
        replace: Whether ``out`` may be the checkpoint itself, which is replaced at the end.
        monitor: Watches the job.

    Raises:
        ConfigError: ``out`` is not empty, or the dense model is another than the pruned one's.
        RunMismatchError: An unfinished recovery in ``OUT.unfinished`` has other settings.
        SparsitySearchError: Something else given is not legal; nothing is written then.
    """
    monitor, started = monitor or Monitor(), time.monotonic()
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes must be positive, not {minutes}")
    if not replace:
        check_empty(out)
    stored = read_profile(Path(config.model.name).expanduser(), "recover")
    kind = stored.get("removes") or "weights"
    method = check_recovery(config, kind)
    seed = config.study.seed
    pruned = open_session(config.model, _request_text(config, method), seed, monitor, units=kind)
    profile = SparsityProfile.from_json(pruned.subject.layout, stored)
    pruned.subject.verify(profile)
    teacher = _open_dense(config, dense or stored["model"]["name"], kind, monitor)
    try:
        teacher.check_same_model(stored["model"], config.model.name)
    except ConfigError as error:
        raise ConfigError(
            f"{teacher.loaded.name} is not the model that {config.model.name} was pruned from: "
            "give that with --dense"
        ) from error
    _check_alike(pruned, teacher)
    scores = _Scores(pruned, monitor)
    before, taken = scores.measure()
    deadline = started + 60 * minutes - _KEPT * taken if minutes else float("inf")
    facts = _describe(pruned, stored, method)
    work = ProgressFolder(out.with_name(f"{out.name}.unfinished"), _identify(pruned, facts, dense))
    problem = RecoveryProblem(
        subject=pruned.subject,
        dense=teacher.subject,
        tokens=pruned.text["recovery"],
        held_out=pruned.text["held_out"],
        seed=seed,
        seconds_left=lambda: deadline - time.monotonic(),
        progress=work,
    )
    recovered = _run(method, problem, monitor)
    pruned.subject.verify(profile)
    after, _ = scores.measure()
    facts["recovery"] |= {
        "loss": {"name": method.loss, "before": recovered.before, "after": recovered.after},
        "perplexity": {"before": before, "after": after},
    }
    _write(pruned, profile, facts, out, monitor)
    shutil.rmtree(work.path, ignore_errors=True)
    return RecoveryResult(
        profile=profile, types=pruned.types, recovered=recovered, perplexity=(before, after)
    )


def recover_in_place(
    config: RunConfig,
    checkpoint: Path,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    monitor: Monitor | None = None,
) -> RecoveryResult | None:
    """Recover the checkpoint that a command has just made of a model.

    Args:
        config: The configuration of the command, with the dense model.
        checkpoint: The checkpoint.
        out: The folder to write; by default the checkpoint is replaced.
        minutes: Time of the recovery; without it, the steps of the method limit it.
        monitor: Watches the job.

    Returns:
        The outcome; None if ``out`` is this very checkpoint, recovered in this way before.

    Raises:
        SparsitySearchError: As `recover`; the checkpoint stays as it was, and the message says
            how to go on.
    """
    section = config.model.model_copy(update={"name": str(checkpoint), "revision": None})
    if out is not None and _was_recovered(config, checkpoint, out):
        return None
    try:
        return recover(
            config.model_copy(update={"model": section}),
            out or checkpoint,
            dense=config.model.name,
            minutes=minutes,
            replace=True,
            monitor=monitor,
        )
    except ConfigError as error:
        raise ConfigError(f"{error}; {_tell_rest(checkpoint)}") from error
    except DataError as error:
        raise DataError(f"{error}; {_tell_rest(checkpoint)}") from error


def _tell_rest(checkpoint: Path) -> str:
    return f"{checkpoint} is pruned: go on with sparsity-search recover {checkpoint} --out OUT"


def _was_recovered(config: RunConfig, checkpoint: Path, out: Path) -> bool:
    """Return whether ``out`` is a checkpoint that was recovered in this way before."""
    file = out / PROFILE
    if not file.exists():
        return False
    known = PROFILE_JSON.read(file).get("recovery")
    method: Recovery = Factory().resolve(RECOVERIES, config.recovery.spec)
    now = {"method": describe(method), "checksums": _digest_checksums(checkpoint)}
    return isinstance(known, dict) and now == {key: known.get(key) for key in now}


def _digest_checksums(checkpoint: Path) -> str:
    """Return a digest of the checksums of a checkpoint's tensors; empty without them."""
    file = checkpoint / CHECKSUMS
    return compute_file_digest(file)[:16] if file.exists() else ""


def check_recovery(config: RunConfig, kind: str) -> Recovery:
    """Return the recovery of a configuration, checked before any work.

    Raises:
        UnknownNameError: There is no such recovery.
        ConfigError: It refuses its settings, or is not for units of this kind, or not for
            offloaded models.
    """
    method: Recovery = Factory().resolve(RECOVERIES, config.recovery.spec)
    method.check_units(kind)
    if config.model.offload and not method.offloads:
        raise ConfigError(
            f"the recovery {config.recovery.name!r} needs the whole model in memory: leave out "
            "--offload, or choose block"
        )
    return method


def _request_text(config: RunConfig, method: Recovery) -> list[Request]:
    """Return the requests for the text to train on, to stop by, and to score."""
    data = config.data
    length, special = data.calibration_length, data.special_tokens
    final = data.final_text or data.calibration
    return [
        Request("recovery", data.calibration, method.sequences, length, special),
        Request("held_out", data.calibration, method.held_out, length, special),
        Request("final", final, data.final_sequences, data.final_length, special),
    ]


def _open_dense(config: RunConfig, name: str, kind: str, monitor: Monitor) -> Session:
    section = config.model.model_copy(update={"name": name, "revision": None})
    return open_session(section, [], config.study.seed, monitor, units=kind)


def _check_alike(pruned: Session, dense: Session) -> None:
    """Check that the dense model has the blocks of the pruned one.

    Raises:
        ConfigError: It has another number, as that of a smaller checkpoint.
    """
    counts = [len(session.subject.blocks) for session in (pruned, dense)]
    if counts[0] != counts[1] or pruned.hidden_size != dense.hidden_size:
        raise ConfigError(
            f"the checkpoint has {counts[0]} blocks, the dense model {counts[1]}: recover it "
            "before --materialise removes blocks"
        )


class _Scores:
    """Perplexity on the final text."""

    def __init__(self, session: Session, monitor: Monitor) -> None:
        self._session, self._monitor = session, monitor

    def measure(self) -> tuple[float, float]:
        """Return the perplexity of the model as it is now, and the seconds that it took."""
        started = time.monotonic()
        model, text = self._session.loaded.model, self._session.text["final"]
        with self._monitor.step("score"):
            proxy = EVALUATORS.create("perplexity").bind(model, text)
            score = proxy.score(model, range(len(text)))
        return score.value, time.monotonic() - started


def _run(method: Recovery, problem: RecoveryProblem, monitor: Monitor) -> Recovered:
    with monitor.step("recover", method.count_parts(problem)) as advance:
        return method.recover(dataclasses.replace(problem, advance=advance))


def _describe(session: Session, stored: Mapping[str, Any], method: Recovery) -> dict[str, Any]:
    """Return where the recovered checkpoint comes from."""
    kept = ("model", "removes", "pruner", "seed", "text")
    facts = {key: stored[key] for key in kept if key in stored}
    text = {_TEXTS[name]: entry for name, entry in session.text_facts.items()}
    facts["text"] = {**facts.get("text", {}), **text}
    facts["recovery"] = {
        "method": describe(method),
        "of": session.loaded.digest,
        "checksums": _digest_checksums(Path(session.loaded.name).expanduser()),
    }
    return facts


def _identify(session: Session, facts: Mapping[str, Any], dense: str | None) -> dict[str, Any]:
    """Return what an unfinished recovery depends on."""
    return {
        "method": facts["recovery"]["method"],
        "checkpoint": session.loaded.digest,
        "dense": facts["model"]["digest"] if dense is None else dense,
        "text": compute_digest(facts["text"]),
        "dtype": str(session.loaded.model.dtype),
        "torch": torch.__version__,
    }


def _write(
    session: Session,
    profile: SparsityProfile,
    facts: Mapping[str, Any],
    out: Path,
    monitor: Monitor,
) -> None:
    """Write the checkpoint with its profile."""
    loaded = session.loaded
    with monitor.step("save checkpoint"), atomic_folder(out) as folder:
        card = format_card(profile, facts)
        model = prepare_for_saving(session.subject)
        write_checkpoint(model, loaded.tokenizer, folder, base=loaded, card=card)
        PROFILE_JSON.write(folder / PROFILE, {**profile.to_json(), **facts})
