from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts
from sparsity_search.report.card import format_card
from sparsity_search.report.table import NONE

LAYOUT = Layout(
    [
        Unit(name=f"layers.{block}.{role}", block=block, role=role, count=count)
        for block in range(2)
        for role, count in (("q", 1000), ("up", 3000))
    ]
)
PROFILE = from_counts(LAYOUT, [500, 1000, 250, 2250])
FACTS: dict[str, Any] = {
    "model": {"name": "org/model", "revision": "c0ffee", "digest": "0123456789abcdef"},
    "removes": "weights",
    "pruner": {"name": "sparsegpt", "damping": 0.01},
    "seed": 3,
    "text": {
        "calibration": {
            "source": "file:text.txt",
            "sha256": "feedfacefeedface",
            "sequences": 4,
            "length": 32,
            "digest": "aa11",
        }
    },
    "evaluator": "kl_divergence",
}
ROWS = [
    {"name": "dense", "score": 0.0, "perplexity": 12.25, "sparsity": 0.0, "removed": 0},
    {"name": "owl", "score": 0.5, "perplexity": 20.0, "sparsity": 0.5, "removed": 4000},
    {"name": "uniform", "score": None, "perplexity": None, "sparsity": 0.5, "removed": 4000},
]


def test_it_states_profile_pruner_data_and_counts() -> None:
    text = format_card(PROFILE, FACTS)
    for words in (
        "4,000 of 8,000 prunable weights, in 4 units of 2 decoder blocks",
        PROFILE.digest,
        '"damping": 0.01',
        "file:text.txt (sha256 feedfacefeedface), 4 sequences of 32 tokens, tokens aa11",
        "| org/model, commit c0ffee, weights 0123456789abcdef |",
        "| q | 2 | 750 | 2,000 | 37.50 % |",
        "| up | 2 | 3,250 | 6,000 | 54.17 % |",
    ):
        assert words in text
    assert "## Figures" not in text


def test_it_states_what_is_copied() -> None:
    left = {**FACTS["model"], "left_alone": {"tensors": 24, "weights": 51588}}
    told = "24 tensors with 51,588 weights that transformers does not load"
    assert told in format_card(PROFILE, {**FACTS, "model": left})
    assert told not in format_card(PROFILE, FACTS)


def test_figures_of_the_comparison() -> None:
    text = format_card(PROFILE, FACTS, ROWS, "owl")
    assert "Score: kl_divergence" in text
    assert "| **owl** | 50.00 % | 4,000 | 0.5" in text
    assert "| dense | 0.00 % | 0 |" in text
    assert text.count("**") == 2


def test_figures_of_several_pruners() -> None:
    pruners = {"owl": {"name": "alps"}, "uniform": {"name": "wanda", "pattern": "row"}}
    rows = [{**row, "pruner": pruners.get(row["name"])} for row in ROWS]
    text = format_card(PROFILE, FACTS, rows, "owl")
    assert "rebuilt with several pruners" in text
    assert "| profile | pruner | sparsity |" in text
    assert "| **owl** | alps | 50.00 % |" in text
    assert "| uniform | wanda (pattern = row) | 50.00 % |" in text
    assert f"| dense | {NONE} | 0.00 % |" in text
    assert "rebuilt alike" in format_card(PROFILE, FACTS, ROWS, "owl")


def test_a_search_without_a_gain_says_so() -> None:
    rows = [{**row, "score": 0.5} for row in ROWS]
    told = "No profile was better than the uniform one"
    assert told in format_card(PROFILE, FACTS, rows, "uniform")
    assert told not in format_card(PROFILE, FACTS, rows[:2], "owl")


def test_metadata_holds_the_figures_of_the_checkpoint() -> None:
    final = {"source": "file:test.txt", "sequences": 8, "length": 64, "digest": "bb22"}
    facts = {**FACTS, "text": {**FACTS["text"], "final": final}}
    found = ModelCard(format_card(PROFILE, facts, ROWS, "owl")).data.eval_results
    assert found is not None
    assert {each.metric_type: each.metric_value for each in found} == {
        "perplexity": 20.0,
        "kl_divergence": 0.5,
    }
    assert {each.dataset_name for each in found} == {"file:test.txt"}
    assert ModelCard(format_card(PROFILE, facts, ROWS, "uniform")).data.eval_results is None


def test_it_says_how_to_load_and_what_zeros_do_not_save() -> None:
    text = format_card(PROFILE, FACTS)
    assert "AutoModelForCausalLM.from_pretrained(folder)" in text
    assert "save neither memory nor time" in text


def test_metadata_names_the_base_model_and_no_license() -> None:
    data = ModelCard(format_card(PROFILE, FACTS)).data
    assert {"pruning", "sparse"} <= set(data.tags or [])
    assert data.base_model == "org/model"
    assert data.library_name == "transformers"
    assert data.license is None


@pytest.mark.parametrize("name", ["/home/me/models/mine", "models/mine", "mine"])
def test_a_folder_is_no_base_model_and_its_path_is_not_told(name: str) -> None:
    model = {**FACTS["model"], "name": name, "revision": None}
    text = format_card(PROFILE, {**FACTS, "model": model})
    assert ModelCard(text).data.base_model is None
    assert "# mine at 50.00 % sparsity" in text
    assert "models/" not in text


def test_names_are_shown_and_not_obeyed() -> None:
    name = "a|b <img onerror=x>\n# `*![c](http://d)\x1b"
    model = {**FACTS["model"], "name": f"/models/{name}", "revision": None}
    source = {**FACTS["text"]["calibration"], "source": f"file:{name}"}
    facts = {**FACTS, "model": model, "text": {"calibration": source}, "evaluator": name}
    rows = [{**ROWS[1], "name": name}]
    plain = format_card(PROFILE, {**FACTS, "model": {**model, "name": "m"}}, ROWS[1:2])
    text = format_card(PROFILE, {**facts, "pruner": {"name": name}}, rows, name)
    assert "<" not in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(plain.splitlines())
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()]
    assert cells == [len(re.findall(r"(?<!\\)\|", line)) for line in plain.splitlines()]
    shown = re.sub(r"```python.*?```", "", text, flags=re.DOTALL).partition("# ")[2]
    assert not re.search(r"(?<!\\)[\[`]", shown)


def test_structures_are_not_called_zeros() -> None:
    assert "structures (heads)" in format_card(PROFILE, {**FACTS, "removes": "heads"})
