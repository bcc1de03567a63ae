"""`convert`: formats, targets and models, on files and on tiny random models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sparsity_search.cli.convert import convert
from sparsity_search.errors import SparsitySearchError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile, from_counts
from sparsity_search.testing.models import save_tiny_model

Run = Callable[..., str]
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEVELS = ("--set", "evopress.sparsity=0.5", "--set", "evopress.step=8")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in a small application; errors of ours come out as they are."""
    app = typer.Typer()
    app.command()(convert)
    command = typer.main.get_command(app)

    def call(*arguments: object) -> str:
        command([str(a) for a in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "deeper"
    return save_tiny_model(folder, layers=5, intermediate_size=96)


@pytest.fixture
def layout() -> Layout:
    sizes = (40, 160, 24)
    return Layout(
        [
            Unit(name=f"m.{i // 3}.{NAMES[i % 3]}", block=i // 3, role=NAMES[i % 3][0], count=n)
            for i, n in enumerate(sizes * 2)
        ]
    )


@pytest.fixture
def profile(layout: Layout, tmp_path: Path) -> Path:
    facts = {"removes": "weights", "allocator": "owl", "model": {"name": "m"}, "target": 0.5}
    return written(from_counts(layout, [20, 88, 4, 20, 72, 20]), tmp_path / "profile.json", facts)


def written(profile: SparsityProfile, path: Path, facts: dict[str, Any] | None = None) -> Path:
    PROFILE_JSON.write(path, {**profile.to_json(), **(facts or {})})
    return path


def counts(path: Path) -> list[int]:
    return [unit["removed"] for unit in json.loads(path.read_text())["units"].values()]


def refused(run: Run, out: Path, *arguments: object) -> str:
    with pytest.raises(SparsitySearchError) as error:
        run(*arguments, "--out", out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    assert not [f for f in out.parent.iterdir() if f.name.startswith(f".{out.name}")]
    return str(error.value)


def test_a_copy_keeps_everything(run: Run, profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "copy.json"
    told = run(profile, "--out", out)
    assert json.loads(out.read_text()) == json.loads(profile.read_text())
    assert "copied, 224 of 448 weights removed (50.00%), format profile" in told


def test_another_target(run: Run, profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "denser.json"
    assert "shifted, 314 of 448" in run(profile, "--out", out, "--sparsity", 0.7)
    stored = json.loads(out.read_text())
    assert stored["removed"] == round(0.7 * 448) == sum(counts(out))
    # the last unit has room for 4 of the 90 more weights; the others share 86 of 424
    shifted = [n + 86 / 424 for n in (20 / 40, 88 / 160, 4 / 24, 20 / 40, 72 / 160)]
    found = [unit["sparsity"] for unit in stored["units"].values()]
    assert found == pytest.approx([*shifted, 1.0], abs=0.03)
    assert (stored["target"], stored["removes"]) == (0.7, "weights")
    assert stored["model"] == {"name": "m"}
    assert stored["converted"]["sparsity"] == 0.5
    assert stored["converted"]["facts"]["allocator"] == "owl"
    assert "allocator" not in stored  # it did not make this profile


def test_bounds_alone_keep_the_target(run: Run, profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "bounded.json"
    assert "shifted, 224 of" in run(profile, "--out", out, "--bounds", "v=0.4:0.6")
    assert counts(out)[2] == 10
    assert counts(out)[5] == 14
    assert "copied" in run(profile, "--out", out, "--bounds", "v=0.1:0.9")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moved.csv", ()),
        ("moved.yaml", ()),
        ("moved.yaml", ("llm_compressor",)),
        ("moved.txt", ("evopress", *LEVELS)),
    ],
)
def test_there_and_back(
    run: Run, profile: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    there, back = tmp_path / name, tmp_path / "back.json"
    kind, *settings = options or ("",)
    run(profile, "--out", there, *(("--to", kind) if kind else ()), *settings)
    source = () if name.endswith(".csv") else ("--reference", profile)
    run(there, "--out", back, *(("--from", kind) if kind else ()), *settings, *source)
    assert counts(back) == counts(profile)
    if source:
        stored = json.loads(back.read_text())
        assert (stored["removes"], stored["model"]) == ("weights", {"name": "m"})


def test_rounding_is_told(run: Run, profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "levels.txt"
    settings = ("--set", "evopress.sparsity=0.5", "--set", "evopress.step=10")
    told = run(profile, "--out", out, *settings)
    # steps of 10 from half: wanted are 0, 0.8, -0.8, 0, -0.8 and 0.8
    assert "the format rounds: it has other counts for 4 units" in told
    assert "224 of 448" in told
    assert "rounds" not in run(profile, "--out", out, *LEVELS)
    told = run(profile, "--out", tmp_path / "r.yaml", "--to", "owl", "--set", "owl.by=block")
    assert "other counts for 4 units" in told  # q is at its block's mean


def test_another_model(run: Run, model: Path, deeper: Path, tmp_path: Path) -> None:
    subject = PrunableModel(load_model(str(model)).model)
    layout = subject.layout
    rising = [round(u.count * (0.2 + 0.2 * u.block + 0.1 * (u.role == "q"))) for u in layout]
    source = from_counts(layout, rising)
    out = tmp_path / "moved.json"
    path = written(source, tmp_path / "p.json", {"removes": "weights", "allocator": "owl"})
    told = run(path, "--model", deeper, "--out", out)
    assert "transferred" in told
    assert "follow its blocks" not in told
    other = PrunableModel(load_model(str(deeper)).model).layout
    stored = json.loads(out.read_text())
    moved = SparsityProfile.from_json(other, stored)
    assert moved.n_removed == Budget(source.sparsity).n_removed(other)
    assert (stored["removes"], stored["model"]["name"]) == ("weights", str(deeper))
    assert stored["converted"]["facts"]["allocator"] == "owl"
    by_block = [
        [s for u, s in zip(other, moved.sparsities, strict=True) if u.role == "q" and u.block == b]
        for b in range(5)
    ]
    shifts = [sparsity - 0.3 - 0.1 * b for b, (sparsity,) in enumerate(by_block)]
    assert max(shifts) - min(shifts) < 0.01


def test_the_same_model(run: Run, model: Path, tmp_path: Path) -> None:
    layout = PrunableModel(load_model(str(model)).model).layout
    profile = Budget(0.6).project(layout, [0.4 + 0.1 * u.block for u in layout])  # type: ignore[arg-type]
    path, out = written(profile, tmp_path / "p.json"), tmp_path / "out.json"
    assert "copied" in run(path, "--model", model, "--out", out)
    assert SparsityProfile.from_json(layout, json.loads(out.read_text())) == profile
    assert "shifted" in run(path, "--model", model, "--out", out, "--sparsity", 0.3)
    assert json.loads(out.read_text())["removed"] == Budget(0.3).n_removed(layout)


def test_ratios_for_a_model(run: Run, model: Path, tmp_path: Path) -> None:
    ratios, out = tmp_path / "owl.yaml", tmp_path / "out.json"
    ratios.write_text("0: 0.25\n1: 0.5\n2: 0.75\n")
    run(ratios, "--from", "owl", "--model", model, "--out", out)
    units = json.loads(out.read_text())["units"].values()
    assert all(unit["sparsity"] == 0.25 * (unit["block"] + 1) for unit in units)
    assert json.loads(out.read_text())["removes"] == "weights"


def test_ratios_of_one_model_for_another(
    run: Run, model: Path, deeper: Path, tmp_path: Path
) -> None:
    layout = PrunableModel(load_model(str(model)).model).layout
    reference = written(Budget(0.5).uniform(layout), tmp_path / "p.json", {"removes": "weights"})
    ratios, out = tmp_path / "owl.yaml", tmp_path / "out.json"
    ratios.write_text("[0.3, 0.5, 0.7]")
    told = run(ratios, "--from", "owl", "--reference", reference, "--model", deeper, "--out", out)
    assert "transferred" in told
    units = json.loads(out.read_text())["units"].values()
    assert all(u["sparsity"] == pytest.approx(0.3 + 0.1 * u["block"], abs=0.01) for u in units)


def test_structures_of_another_model(run: Run, model: Path, deeper: Path, tmp_path: Path) -> None:
    layout = PrunableModel(load_model(str(model)).model, units="heads").layout
    profile = Budget(0.4).uniform(layout)
    path, out = written(profile, tmp_path / "p.json", {"removes": "heads"}), tmp_path / "out.json"
    run(path, "--model", deeper, "--out", out)
    other = PrunableModel(load_model(str(deeper)).model, units="heads").layout
    stored = json.loads(out.read_text())
    moved = SparsityProfile.from_json(other, stored)
    assert stored["removes"] == "heads"
    assert 0 <= Budget(profile.sparsity).n_removed(other) - moved.n_removed < other.costs.max()
    assert "--units width" in refused(run, tmp_path / "no.json", path, "--model", deeper,
                                      "--units", "width")  # fmt: skip
    table = tmp_path / "p.csv"
    run(path, "--out", table)
    assert "give --units" in refused(run, tmp_path / "no.json", table, "--model", deeper)
    run(table, "--model", deeper, "--units", "heads", "--out", tmp_path / "again.json")
    assert counts(tmp_path / "again.json") == counts(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "ovl"], "did you mean 'owl'"),
        (["--from", "prof"], "did you mean 'profile'"),
        (["--sparsity", "1"], "strictly between 0 and 1"),
        (["--sparsity", "0.9", "--bounds", "q=0:0.1", "--bounds", "k=0:0.1"], "out of reach"),
        (["--bounds", "up=0:1"], "no unit has the role 'up'"),
        (["--bounds", "q"], "ROLE=LOW:HIGH"),
        (["--set", "step=3"], "FORMAT.KEY=VALUE"),
        (["--set", "evopress.step=3"], "no file here is of this format"),
        (["--to", "evopress"], "evopress.sparsity"),
        (["--to", "evopress", "--set", "evopress.stp=3"], "no setting 'stp'"),
        (["--to", "evopress", "--set", "evopress.step=["], "not YAML"),
        (["--units", "heads"], "--units is about a model"),
        (["--trust-remote-code"], "--trust-remote-code is about a model"),
        (["--model", "absent/model/here"], "absent"),
        (["--reference", "other.json"], "--reference is not needed"),
        (["--from", "owl", "--reference", "absent.json"], "cannot read absent.json"),
    ],
)
def test_bad_options(
    run: Run, profile: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    assert words in refused(run, tmp_path / "out.json", profile, *options)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.json", None, "cannot read"),
        ("p.json", b"{", "corrupt"),
        ("p.json", b"\xff\xfe", "is not UTF-8 text"),
        ("p.json", b'{"0": 0.5}', "not a sparsity profile"),
        ("p.csv", b"a,b\n", "lacks the column"),
        ("p.dat", b"", "does not tell its format: give --from"),
        ("p", b"", "does not tell its format: give --from"),
        ("p.yml", b"0: 0.5", "--model MODEL, or --reference PROFILE"),
    ],
)
def test_bad_files(run: Run, tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert words in refused(run, tmp_path / "out.json", tmp_path / name)


def test_the_format_to_write_must_be_known(run: Run, profile: Path, tmp_path: Path) -> None:
    assert "give --to" in refused(run, tmp_path / "out.recipe", profile)


def test_a_failure_leaves_the_old_file(run: Run, profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    with pytest.raises(SparsitySearchError):
        run(profile, "--out", out, "--sparsity", 1)
    assert out.read_text() == "old"


def test_no_torch_without_a_model(profile: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from sparsity_search.workflow.convert import ConversionRequest, convert;"
        "import sparsity_search.cli.convert;"
        "convert(ConversionRequest(source=Path(sys.argv[1]), out=Path(sys.argv[2])));"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(profile), str(tmp_path / "a.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_help_shows_examples() -> None:
    app = typer.Typer()
    app.command()(convert)
    outcome = CliRunner().invoke(app, ["--help"])
    assert "sparsity-search convert profile.json --sparsity 0.7" in outcome.output


def test_patterns_stay_or_are_refused(run: Run, layout: Layout, tmp_path: Path) -> None:
    patterns = ("2:4", "", "", "4:8", "", "2:4")
    counts = [unit.count // 2 if p else 3 for unit, p in zip(layout, patterns, strict=True)]
    profile = SparsityProfile(layout, tuple(counts), patterns)
    stored, copy = tmp_path / "profile.json", tmp_path / "copy.json"
    stored.write_text(json.dumps(profile.to_json()))
    run(stored, "--out", copy)
    assert SparsityProfile.from_json(layout, json.loads(copy.read_text())) == profile
    with pytest.raises(SparsitySearchError, match="csv has no place for the patterns"):
        run(stored, "--out", tmp_path / "profile.csv")
    assert not (tmp_path / "profile.csv").exists()
    run(stored, "--out", tmp_path / "shifted.csv", "--sparsity", 0.3)  # counts alone are shifted
