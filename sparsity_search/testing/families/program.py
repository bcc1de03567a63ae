"""A family's tiny model through the whole program: inspected, pruned, searched, loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import SparsitySearchError
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.families.family import Family
from sparsity_search.testing.models import tiny_text, tiny_tokenizer
from sparsity_search.workflow.inspect import inspect
from sparsity_search.workflow.prune import prune
from sparsity_search.workflow.search import search
from sparsity_search.workflow.verify import verify

#: Fraction of the weights that is removed.
SPARSITY = 0.5
#: Fault of a step that needs another one, which has a fault.
NOT_RUN = "not run"
#: The step that some steps need; the others need the inspection.
_AFTER = {"verify": "search", "reload": "wanda"}
#: The smallest texts and search of two rounds.
SMALLEST = {
    "budget.sparsity": SPARSITY,
    "model.dtype": "float32",
    "model.device": "cpu",
    "data.calibration_length": 16,
    "data.calibration_sequences": 8,
    "data.search_length": 16,
    "data.search_sequences": 2,
    "data.final_length": 16,
    "data.final_sequences": 1,
    "initial": ["uniform"],
    "ladder.candidates": 2,
    "ladder.rungs": [{"tokens": 16, "survivors": 1}],
    "study.rounds": 2,
}


@dataclass(frozen=True)
class Outcome:
    """What the program makes of a family.

    Attributes:
        faults: What went wrong in each step, in one line; empty where nothing did.
        left: Share of the numbers in the blocks' matrices that Wanda leaves as they are; None if
            it does not run.
    """

    faults: dict[str, str]
    left: float | None


def run_program(family: Family, folder: Path) -> Outcome:
    """Take a family through the whole program.

    The zeros of checkpoints are counted here, by the files alone: as many new ones as the profile
    says, all other tensors equal, and none lost.

    Args:
        family: The family.
        folder: A folder for its files; nothing stays there.
    """
    run = _Program(family, folder)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run.save()
        faults: dict[str, str] = {}
        for name, step in run.steps.items():
            after = _AFTER.get(name, "inspect")
            fault = NOT_RUN if faults.get(after) else _describe_fault(step)
            faults[name] = fault.replace(f"{folder}/", "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(faults, run.left)


class WrongOutcomeError(Exception):
    """A step ran, but its outcome is wrong."""


def _describe_fault(step: Callable[[], None]) -> str:
    try:
        step()
    except SparsitySearchError as error:
        return f"refused: {' '.join(str(error).split())}"
    except WrongOutcomeError as error:
        return f"wrong: {error}"
    except Exception as error:  # whatever it is, it becomes a line of the table
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


class _Program:
    """The steps of `run_program`, in order.

    Attributes:
        steps: What each step does; it raises an exception if something is wrong.
        left: See `Outcome`.
    """

    def __init__(self, family: Family, folder: Path) -> None:
        self._family = family
        self._dense, self._text = folder / "dense", folder / "text.txt"
        self._wanda, self._groups = folder / "wanda", folder / "groups"
        self._run = folder / "run"
        self._blocks = ""
        self.left: float | None = None
        self.steps: dict[str, Callable[[], None]] = {
            "inspect": self._inspect,
            "wanda": self._prune_to_half,
            "2:4": self._prune_in_groups,
            "search": self._search,
            "verify": self._verify,
            "reload": self._reload,
        }

    def save(self) -> None:
        """Write the dense model and the text."""
        save_checkpoint(self._family.make(), tiny_tokenizer(), self._dense)
        self._text.write_text(tiny_text(500))

    def _configure(self, model: Path, **options: Any) -> RunConfig:
        given = {"model.name": str(model), "data.calibration": f"file:{self._text}"}
        return load_config(None, {**SMALLEST, **given, **options})

    def _inspect(self) -> None:
        self._blocks = inspect(self._configure(self._dense)).blocks

    def _prune_to_half(self) -> None:
        prune(self._configure(self._dense, **{"pruner.name": "wanda"}), self._wanda)
        changed = self._count(self._wanda, self._wanda)
        matrices = {
            name: tensor.numel()
            for name, tensor in self._load(self._dense).items()
            if name.startswith(f"{self._blocks}.") and tensor.ndim > 1
        }
        left = sum(number for name, number in matrices.items() if name not in changed)
        self.left = left / sum(matrices.values())

    def _prune_in_groups(self) -> None:
        options = {"pruner.name": "sparsegpt", "pruner.pattern": "2:4"}
        prune(self._configure(self._dense, **options), self._groups)
        for name, zeros in self._count(self._groups, self._groups).items():
            matrices = zeros.flatten(0, -3) if zeros.ndim > 2 else zeros[None]
            pruned = matrices[matrices.any(dim=(1, 2))]  # some experts have no use
            sides = [side for side in (pruned, pruned.mT) if side.shape[-1] % 4 == 0]
            groups = [side.reshape(*side.shape[:-1], -1, 4).sum(-1) for side in sides]
            _check(any((g == 2).all() for g in groups), f"{name} is not 2:4 along its inputs")

    def _search(self) -> None:
        search(self._configure(self._dense), self._run)
        self._count(self._run / "checkpoint", self._run)

    def _verify(self) -> None:
        config = self._configure(self._run / "checkpoint")
        verify(config, self._run / "profile.json")

    @torch.inference_mode()
    def _reload(self) -> None:
        tokens = draw_random_tokens(2, 16)
        logits = [
            self._open(folder)(input_ids=tokens, use_cache=False).logits
            for folder in (self._dense, self._wanda)
        ]
        _check(bool(logits[1].isfinite().all()), "logits are not finite")
        _check(not torch.equal(*logits), "logits are those of the dense model")

    def _count(self, checkpoint: Path, folder: Path) -> dict[str, Tensor]:
        """Return where the new zeros of a checkpoint are, by changed tensor, and check them.

        Args:
            checkpoint: The checkpoint.
            folder: Where its profile is.
        """
        before, after = self._load(self._dense), self._load(checkpoint)
        _check(before.keys() == after.keys(), f"other tensors: {before.keys() ^ after.keys()}")
        changed = {n: (t == 0) & (before[n] != 0) for n, t in after.items() if (t == 0).any()}
        changed = {name: zeros for name, zeros in changed.items() if zeros.any()}
        for name, tensor in after.items():
            same = name in changed or torch.equal(tensor, before[name])
            _check(same, f"{name} has other values and no zeros")
        units = json.loads((folder / "profile.json").read_text())["units"].values()
        removed, size = (sum(unit[key] for unit in units) for key in ("removed", "of"))
        found = sum(int(zeros.sum()) for zeros in changed.values())
        _check(found == removed, f"{found} new zeros, the profile says {removed}")
        _check(found == round(SPARSITY * size), f"{found} new zeros of {size} weights")
        return changed

    def _load(self, folder: Path) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, loaded plainly; shared ones once."""
        state = self._open(folder).state_dict()
        names = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
        return {name: state[name] for name in reversed(names.values())}

    def _open(self, folder: Path) -> Any:
        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        _check(name == self._family.architecture, f"saved as {name}")
        model, info = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        faults = {kind: sorted(keys) for kind, keys in info.items() if keys}
        _check(not faults, f"loading finds {faults}")
        return model.eval()


def _check(right: bool, fault: str) -> None:
    if not right:
        raise WrongOutcomeError(fault)
