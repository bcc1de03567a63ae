"""Sequences start as documents of the tokenizer do, for every purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import DataSection
from sparsity_search.data.sequences import Request, draw, draw_texts
from sparsity_search.data.special_tokens import find_prefix, name_tokens
from sparsity_search.engine.session import request_search_text
from sparsity_search.errors import DataError
from sparsity_search.models.io.identity import identify
from sparsity_search.models.io.loading import LoadedModel, load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.models import tiny_llama, tiny_loaded, tiny_text, tiny_tokenizer
from sparsity_search.workflow.evaluate import evaluate
from sparsity_search.workflow.prune import prune

BOS, EOS = 1, 2


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(tiny_text(200))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose tokenizer puts BOS before a document."""
    folder = tmp_path_factory.mktemp("models") / "bos"
    save_checkpoint(tiny_llama(), tiny_tokenizer("<bos> $A"), folder)
    return folder


def loaded(document: str) -> LoadedModel:
    found, tokenizer = tiny_loaded(), tiny_tokenizer(document)
    return replace(found, tokenizer=tokenizer, identity=identify(found.model, tokenizer))


def ids(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text).input_ids
    return found


@pytest.mark.parametrize(
    ("document", "prefix", "name"),
    [
        ("$A", (), "none"),
        ("<bos> $A", (BOS,), "<bos>"),
        ("$A <eos>", (), "none"),
        ("<bos> $A <eos>", (BOS,), "<bos>"),
        ("<eos> <bos> $A", (EOS, BOS), "<eos> <bos>"),
    ],
)
def test_what_stands_before_a_document(document: str, prefix: tuple[int, ...], name: str) -> None:
    tokenizer = tiny_tokenizer(document)
    assert tokenizer.bos_token_id == BOS  # defined, and not always added
    assert find_prefix(tokenizer) == prefix
    assert name_tokens(prefix, tokenizer) == name


def test_each_sequence_has_them_within_its_length(text: Path) -> None:
    requests = [Request("a", str(text), 2, 9), Request("all", str(text), None, 21)]
    drawn = draw_texts(requests, loaded("<eos> <bos> $A"), 0)
    stream = ids(text.read_text())
    assert drawn["a"].tokens.tolist() == [[EOS, BOS, *stream[:7]], [EOS, BOS, *stream[7:14]]]
    assert drawn["all"].tokens.shape == ((len(stream) - 14) // 19, 21)
    assert drawn["all"].tokens[1].tolist() == [EOS, BOS, *stream[33:52]]
    assert drawn["a"].describe()["special_tokens"] == "<eos> <bos>"


def test_none_reads_text_alone(text: Path) -> None:
    plain = draw([Request("a", str(text), 3, 9)], loaded("$A"), 0)["a"]
    request = Request("a", str(text), 3, 9, special_tokens="none")
    found = draw_texts([request], loaded("<bos> $A"), 0)["a"]
    assert torch.equal(found.tokens, plain)
    assert found.special_tokens == "none"


def test_lengths_count_them(text: Path) -> None:
    with pytest.raises(DataError, match=r"2 tokens for a have no room .* \(<eos> <bos>\)"):
        draw([Request("a", str(text), 1, 2)], loaded("<eos> <bos> $A"), 0)
    text.write_text("x" * 21)
    assert draw([Request("a", str(text), 3, 8)], loaded("<bos> $A"), 0)["a"].shape == (3, 8)
    with pytest.raises(DataError, match=r"has 21 tokens, but 28 are needed \(a 4 x 7\)"):
        draw([Request("a", str(text), 4, 8)], loaded("<bos> $A"), 0)


def test_own_text_starts_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(tmp_path))
    for document, special in (("$A", "<bos>"), ("<eos> <bos> $A", "<eos> <bos>")):
        drawn = draw_texts([Request("a", "self", 2, 8, "none")], loaded(document), 0)["a"]
        first = [tiny_tokenizer().convert_tokens_to_ids(token) for token in special.split()]
        assert drawn.tokens[:, : len(first)].tolist() == [first] * 2
        assert drawn.special_tokens == special


def test_all_purposes_follow_the_setting() -> None:
    for setting in ("auto", "none"):
        requests = request_search_text(DataSection(special_tokens=setting))
        assert [request.special_tokens for request in requests] == [setting] * 3


@pytest.mark.parametrize("setting", ["auto", "none"])
def test_perplexity_is_of_the_text_alone(model: Path, text: Path, setting: str) -> None:
    given = {"model.name": str(model), "model.dtype": "float32", "evaluator.name": "perplexity"}
    config = load_config(None, given)
    request = Request("evaluation", str(text), 3, 17, setting)  # type: ignore[arg-type]
    found = evaluate(config, request)
    stream, first = ids(text.read_text()), [BOS] if setting == "auto" else []
    width, losses = 17 - len(first), []
    dense = tiny_llama()
    for start in range(0, 3 * width, width):
        rows = [*first, *stream[start : start + width]]
        with torch.inference_mode():
            scores = dense(input_ids=torch.tensor([rows])).logits[0].double().log_softmax(-1)
        losses += [float(-scores[i, rows[i + 1]]) for i in range(len(rows) - 1)]
    assert len(losses) == 3 * 16
    expected = torch.tensor(losses).mean().exp().item()
    assert found.score.value == pytest.approx(expected, rel=1e-5)
    assert found.special_tokens == ("<bos>" if setting == "auto" else "none")


def test_the_record_and_the_checkpoint_keep_them(model: Path, text: Path, tmp_path: Path) -> None:
    given = {
        "model.name": str(model),
        "data.calibration": str(text),
        "data.calibration_length": 16,
        "data.calibration_sequences": 2,
        "budget.sparsity": 0.5,
    }
    prune(load_config(None, given), tmp_path / "out")
    stored = json.loads((tmp_path / "out/profile.json").read_text())
    assert stored["text"]["calibration"]["special_tokens"] == "<bos>"
    assert "16 tokens, `<bos>` first" in (tmp_path / "out/README.md").read_text()
    assert find_prefix(load_model(str(tmp_path / "out")).tokenizer) == (BOS,)
