"""The other commands on a tiny random model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.registry import KINDS, SEARCHERS
from sparsity_search.spaces.files import space_names
from sparsity_search.testing.models import save_tiny_model, tiny_llama, tiny_tokenizer
from tests.helpers.families import FAMILIES

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def test_allocate_prune_verify_evaluate(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    profile, pruned = tmp_path / "profile.json", tmp_path / "pruned"
    options = ("--calibration", f"file:{text}", *SMALL)
    outcome = cli("allocate", model, "--allocator", "owl", "--sparsity", 0.7, "--out", profile,
                  *options, "--set", "allocators.owl.m=2")  # fmt: skip
    assert outcome.code == 0, outcome.err
    stored = json.loads(profile.read_text())
    assert stored["removed"] == round(0.7 * stored["weights"])
    assert "m=2" in stored["allocator"]
    outcome = cli(
        "prune", model, "--profile", profile, "--pruner", "sparsegpt", "--out", pruned, *options
    )
    assert outcome.code == 0, outcome.err
    assert cli("verify", pruned, "--profile", profile).code == 0
    assert cli("verify", pruned, "--profile", pruned / "profile.json").code == 0
    outcome = cli("evaluate", pruned, "--text", f"file:{text}", "--length", 32, "--sequences", 4)
    assert "perplexity" in outcome.out
    assert "70.00 %" in outcome.out
    outcome = cli("evaluate", pruned, "--text", f"file:{text}", "--length", 32, "--sequences", 4,
                  "--evaluator", "kl_divergence", "--dense", model)  # fmt: skip
    assert float(outcome.out.split()[1]) > 0


def test_evaluate_says_special_tokens(cli: Cli, text: Path, tmp_path: Path) -> None:
    save_checkpoint(tiny_llama(), tiny_tokenizer("<bos> $A"), tmp_path / "bos")
    options = ("--text", f"file:{text}", "--length", 32, "--sequences", 4)
    outcome = cli("evaluate", tmp_path / "bos", *options)
    assert "on 128 tokens (<bos> before each sequence)" in outcome.out
    setting = ("--set", "data.special_tokens=none")
    outcome = cli("evaluate", tmp_path / "bos", *options, *setting)
    assert "on 128 tokens;" in outcome.out
    outcome = cli("evaluate", tmp_path / "bos", *options, "--set", "data.special_tokens=bos")
    assert outcome.code == 2
    assert "'auto' or 'none'" in outcome.err


def test_evaluate_compares_with_itself_by_default(cli: Cli, model: Path, text: Path) -> None:
    options = ("--text", f"file:{text}", "--length", 32, "--sequences", 4)
    outcome = cli("evaluate", model, *options, "--evaluator", "kl_divergence")
    assert float(outcome.out.split()[1]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.7, 0.95])
def test_pruning_meets_the_budget_to_the_weight(
    cli: Cli, model: Path, text: Path, tmp_path: Path, sparsity: float
) -> None:
    out = tmp_path / "pruned"
    options = ("--sparsity", sparsity, "--calibration", f"file:{text}", "--out", out, *SMALL)
    outcome = cli("prune", model, *options)
    assert outcome.code == 0, outcome.err
    outcome = cli("verify", out, "--profile", out / "profile.json")
    assert f"{round(sparsity * 27648)} of 27648 weights are zero" in outcome.out.replace("\n", " ")


def test_inspect_shows_units_and_estimates(cli: Cli, model: Path) -> None:
    outcome = cli("inspect", model, "--pruner", "sparsegpt", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "27,648 weights in 21 units of 3 blocks" in outcome.out
    for word in ("64 x 32", "left alone", "supernet", "checkpoint", "in 10 minutes"):
        assert word in outcome.out
    for word in ("embedding", "head", "norm", "model.embed_tokens.weight", " on cpu"):
        assert word in outcome.out
    assert "counted once" not in outcome.out


def test_inspect_of_a_short_context(cli: Cli, tmp_path: Path) -> None:
    model: Any = FAMILIES["gpt2"]()
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "gpt2")
    # it has 256 positions, less than a sequence
    outcome = cli("inspect", tmp_path / "gpt2", "--sparsity", 0.5)
    assert outcome.code == 0, outcome.err
    assert "one evaluation on 2048 tokens" in outcome.out
    assert "36,864 weights in 18 units of 3 blocks" in outcome.out


def test_inspect_offloaded_and_tied(cli: Cli, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m", tied=True)
    outcome = cli("inspect", folder, "--offload", "--exclude", "up_proj", *SMALL)
    assert outcome.code == 0, outcome.err
    told = " ".join(outcome.out.split())
    assert "counted once: model.embed_tokens.weight is lm_head.weight" in told
    assert "excluded by --exclude 6,144 3" in told
    assert "offloaded to temporary files" in told


def test_report_is_written_anew(cli: Cli, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--sparsity", 0.6, "--rounds", 1, "--out", run, *SMALL)
    assert cli("search", model, *options).code == 0
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    outcome = cli("report", run)
    assert outcome.code == 0, outcome.err
    assert "searched" in outcome.out
    assert (run / "report.html").read_bytes() == before


def test_ls_names_every_plugin(cli: Cli) -> None:
    shown = " ".join(cli("ls").out.split())
    for kind, registry in KINDS.items():
        assert f"{kind} {', '.join(registry.names())}" in shown
    assert f"spaces {', '.join(space_names())}" in shown
    outcome = cli("ls", "searchers", "--json")
    assert json.loads(outcome.out)["searchers"].keys() == set(SEARCHERS.names())
    assert "max_switches=3" in outcome.out
    assert all(name in cli("ls", "spaces").out for name in space_names())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "from sparsity_search.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_plugin_from_outside_is_found_by_its_path(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from sparsity_search.interfaces.searcher import Searcher\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Nothing(Searcher):\n"
        "    def propose(self, space, history, n, rng):\n"
        "        return iter(())\n"
        "    def fallback(self, space, rng):\n"
        "        return iter(())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    options = ("--sparsity", 0.6, "--searcher", "mine:Nothing", "--out", run, *SMALL)
    outcome = cli("search", model, *options)
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "results.json").read_text())["search"]["rounds"] == 0


def test_inspect_shows_structures(cli: Cli, model: Path) -> None:
    outcome = cli("inspect", model, "--pruner", "flap", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "2 of 1,536" in outcome.out  # key-value groups of a tiny Llama
    assert "64 of 96" in outcome.out
    assert "27,648 weights in 6 units of 3 blocks" in outcome.out
