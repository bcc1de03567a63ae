"""Quality of a model or checkpoint: perplexity, and accuracy without examples on two tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request, compute_digest
from sparsity_search.data.text_files import read_json_lines
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.evaluators.tasks.continuations import EncodedContinuation, encode
from sparsity_search.models.running.head import compute_last_hidden, compute_logits
from sparsity_search.registry import EVALUATORS

#: A passage before its last word, that word, and the punctuation after it.
LAST_WORD = re.compile(r"(.*\S)\s+(\w[\w'-]*)\W*", re.DOTALL)


@dataclass(frozen=True)
class Examination:
    """What a model is measured on.

    Attributes:
        data: Folder of the texts.
        windows: Sequences of text for perplexity.
        length: Tokens in each.
        questions: Questions of ARC-easy; 0 for all.
        passages: Passages whose last word is predicted; 0 for all.
    """

    data: Path
    windows: int
    length: int
    questions: int
    passages: int

    def measure(self, model: str) -> dict[str, Any]:
        """Return the figures of a model, by name, folder or file."""
        session = _open(model, self.data, self.windows, self.length)
        return {
            "perplexity": _score_perplexity(session),
            "arc_easy": self._score_questions(session),
            "last_word": self._score_last_words(session),
            "text": compute_digest(session.text["test"]),
        }

    def _score_questions(self, session: Session) -> float:
        """Return the accuracy on questions; the answer has the best log-likelihood (``acc``)."""
        settings = {"measure": "error", "normalise": False, "examples": 1}
        evaluator = EVALUATORS.create(
            "tasks", files=(str(self.data / "arc_easy.jsonl"),), **settings
        )
        model, loaded = session.loaded.model, session.loaded
        proxy = evaluator.bind(model, session.text["test"], loaded.tokenizer)
        n_rows = self.questions or evaluator.own_data().n_rows
        return 1.0 - float(proxy.score(model, range(n_rows)).value)

    @torch.inference_mode()
    def _score_last_words(self, session: Session) -> float:
        """Return the share of passages whose last word is predicted token by token, as LAMBADA."""
        model, found = session.loaded.model, []
        for inputs, targets in self._read_passages(session):
            hidden = compute_last_hidden(model, inputs[None])[0, -len(targets) :]
            best = compute_logits(model, hidden).argmax(-1)
            found.append(torch.equal(best.cpu(), targets))
        return sum(found) / len(found)

    def _read_passages(self, session: Session) -> Iterator[EncodedContinuation]:
        config: Any = session.loaded.model.config
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        rows = [row for _, row in read_json_lines(self.data / "wikipedia_heldout.jsonl") if row]
        for row in rows[: self.passages or None]:
            if parts := LAST_WORD.fullmatch(row["text"].strip()):
                yield encode(session.loaded.tokenizer, parts[1], f" {parts[2]}", longest)


def measure_perplexity(model: str, data: Path, windows: int) -> float:
    """Return the perplexity of a model on windows of 1,024 tokens of the test text."""
    return _score_perplexity(_open(model, data, windows, 1024))


def _open(model: str, data: Path, windows: int, length: int) -> Session:
    test = Request("test", f"file:{data / 'wikitext2_valid.txt'}", windows, length)
    section = load_config(None, {"model.name": model}).model
    return open_session(section, [test], 0, Monitor())


def _score_perplexity(session: Session) -> float:
    model, text = session.loaded.model, session.text["test"]
    proxy = EVALUATORS.create("perplexity").bind(model, text)
    return float(proxy.score(model, range(len(text))).value)
