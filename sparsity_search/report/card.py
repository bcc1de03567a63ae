"""The model card of a checkpoint: its sparsity, origin, text and quality."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.markdown import escape, format_table
from sparsity_search.report.rows import ResultRow, describe_pruner, list_pruners, tell_no_gain
from sparsity_search.report.table import NONE, format_integer, format_number, format_percent

#: How a checkpoint is used; it replaces no library.
_USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def format_card(
    profile: SparsityProfile,
    facts: Mapping[str, Any],
    results: Sequence[ResultRow] = (),
    shipped: str = "",
) -> str:
    """Return the text of a checkpoint's ``README.md``; equal arguments give equal texts.

    It names no license: that is the base model's.

    Args:
        profile: The profile of the checkpoint.
        facts: Other facts of ``profile.json``: ``model``, ``pruner``, ``text``, ``seed`` and
            ``removes``.
        results: Rows of the final comparison, if there was one.
        shipped: Name of the row that the checkpoint is.
    """
    model = facts["model"]
    # only a model of the hub has a commit; a folder's path is nobody's business
    of_hub = model["name"] if model["revision"] else None
    name = escape(of_hub or Path(model["name"]).name)
    chosen: ResultRow = next((row for row in results if row["name"] == shipped), {})
    figures = _list_results(facts, chosen)
    data = ModelCardData(
        base_model=of_hub,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruning", "sparse", "sparsity-search"],
        model_name=_name_plainly(model) if figures else None,
        eval_results=figures or None,
    )
    parts = [
        f"# {name} at {format_percent(profile.sparsity)} sparsity",
        _summarise(profile, facts),
        _USAGE,
        format_table(("", ""), _list_origin(name, profile, facts)),
        "## Sparsity by role",
        format_table(("role", "units", "removed", "of", "sparsity"), _list_roles(profile)),
    ]
    if results:
        parts += [
            "## Figures",
            _explain_figures(facts, results, shipped),
            _tabulate_figures(results, shipped),
        ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _name_plainly(model: Mapping[str, Any]) -> str:
    """Return the model's name for metadata: of a folder, its last part."""
    return str(model["name"] if model["revision"] else Path(model["name"]).name)


def _list_results(facts: Mapping[str, Any], row: ResultRow) -> list[EvalResult]:
    """Return the figures of the checkpoint on the final text, for the hub's ``model-index``."""
    text = facts["text"].get("final")
    if text is None:
        return []
    measured = {"perplexity": row.get("perplexity"), facts.get("evaluator", ""): row.get("score")}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=_describe_text(text).partition(",")[0],
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in measured.items()
        if metric and value is not None
    ]


def _summarise(profile: SparsityProfile, facts: Mapping[str, Any]) -> str:
    layout = profile.layout
    held = (
        "Removed weights are zeros, which by themselves save neither memory nor time: that needs "
        "a format or kernels for sparse weights."
    )
    if facts["removes"] != "weights":
        held = f"What is removed are structures ({escape(facts['removes'])})."
    removed, weights = format_integer(profile.n_removed), format_integer(layout.n_weights)
    return (
        f"{removed} of {weights} prunable weights, in "
        f"{len(layout)} units of {layout.n_blocks} decoder blocks, are removed. {held} "
        f"{_tell_trained(facts)} "
        f"{_tell_left_alone(facts)}The license is that of the base model."
    )


def _tell_trained(facts: Mapping[str, Any]) -> str:
    if "recovery" not in facts and "adapter" not in facts:
        return "What is no unit (embeddings, norms, routers, head) is as in the base model."
    return "Kept weights, norms and biases were trained after pruning, and the zeros kept."


def _tell_left_alone(facts: Mapping[str, Any]) -> str:
    left = facts["model"].get("left_alone")
    if left is None:
        return ""
    tensors, weights = (format_integer(left[key]) for key in ("tensors", "weights"))
    return (
        f"{tensors} tensors with {weights} weights that transformers does not load, such as "
        "multi-token prediction, are copied from the base model. "
    )


def _list_origin(
    name: str, profile: SparsityProfile, facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    model = facts["model"]
    commit = f", commit {escape(model['revision'])}" if model["revision"] else ""
    return [
        ("base model", f"{name}{commit}, weights {model['digest']}"),
        ("profile", profile.digest),
        ("pruner", escape(json.dumps(facts["pruner"], sort_keys=True))),
        *(
            (what, escape(json.dumps(facts[what], sort_keys=True)))
            for what in ("recovery", "adapter")
            if what in facts
        ),
        ("seed", str(facts["seed"])),
        *((f"{purpose} text", _describe_text(entry)) for purpose, entry in facts["text"].items()),
        ("made with", f"sparsity-search {version('sparsity-search')}"),
    ]


def _describe_text(entry: Mapping[str, Any]) -> str:
    file = f" (sha256 {entry['sha256']})" if "sha256" in entry else ""
    size = f"{entry['sequences']} sequences of {entry['length']} tokens"
    if entry.get("special_tokens", "none") != "none":
        size += f", `{entry['special_tokens']}` first"
    return f"{escape(entry['source'])}{file}, {size}, tokens {entry['digest']}"


def _list_roles(profile: SparsityProfile) -> list[tuple[str, ...]]:
    found: dict[str, tuple[int, int, int]] = {}
    for unit, removed in zip(profile.layout, profile.removed, strict=True):
        units, gone, size = found.get(unit.role, (0, 0, 0))
        found[unit.role] = (units + 1, gone + removed * unit.cost, size + unit.size)
    return [
        (
            escape(role),
            str(units),
            format_integer(gone),
            format_integer(size),
            format_percent(gone / size),
        )
        for role, (units, gone, size) in found.items()
    ]


def _explain_figures(facts: Mapping[str, Any], results: Sequence[ResultRow], shipped: str) -> str:
    warning = tell_no_gain(results, shipped)
    alike = "with several pruners" if len(list_pruners(results)) > 1 else "alike"
    return (
        f"{escape(warning)}{warning and ' '}"
        f"Profiles of one budget, rebuilt {alike} and scored on the final text, which the search "
        f"did not see. Score: {escape(facts['evaluator'])}; lower is better. In bold: this "
        "checkpoint."
    )


def _tabulate_figures(results: Sequence[ResultRow], shipped: str) -> str:
    pruners = len(list_pruners(results)) > 1
    header = ("profile", *(("pruner",) if pruners else ()), "sparsity", "removed")
    rows = [
        (
            f"**{escape(row['name'])}**" if row["name"] == shipped else escape(row["name"]),
            *((_describe_pruner(row),) if pruners else ()),
            format_percent(row["sparsity"]),
            format_integer(row["removed"]),
            format_number(row["score"]),
            format_number(row["perplexity"]),
        )
        for row in results
    ]
    return format_table((*header, "score", "perplexity"), rows)


def _describe_pruner(row: ResultRow) -> str:
    return escape(describe_pruner(row["pruner"])) if row.get("pruner") else NONE
