"""Shared options set keys that exist, and commands get what the user gave."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from sparsity_search.cli import options
from sparsity_search.cli.main import COMMANDS, _one_line_warnings
from sparsity_search.config.schema import PluginSection, RunConfig
from sparsity_search.errors import ConfigError, ExperimentalWarning

from .conftest import Outcome

pytestmark = pytest.mark.usefixtures("any_model")

SHARED = [option for option in vars(options).values() if isinstance(option, options.Option)]


@pytest.mark.parametrize("option", [o for o in SHARED if o.key], ids=lambda option: option.name)
def test_a_key_is_one_of_the_configuration(option: options.Option) -> None:
    section, _, field = option.key.partition(".")
    kind: Any = RunConfig.model_fields[section].annotation
    if field:
        models = [kind, *getattr(kind, "__args__", ())]
        (model,) = (m for m in models if isinstance(m, type) and hasattr(m, "model_fields"))
        assert field in model.model_fields or issubclass(model, PluginSection)


def call(command: Callable[..., None], *arguments: str) -> None:
    app = typer.Typer()
    app.command()(command)
    typer.main.get_command(app)(list(arguments), standalone_mode=False)


def test_a_command_gets_options_and_its_own(tmp_path: Path) -> None:
    found: list[Any] = []

    @options.takes(
        options.MODEL, options.HINTS, options.BOUNDS, options.OFFLOAD, *options.CONFIGURATION
    )
    def command(given: options.Given, own: Annotated[int, typer.Option()] = 3) -> None:
        found.extend([given, own, given.load(), given.load({"model.name": "other"})])

    (tmp_path / "run.yaml").write_text("study: {seed: 7}\nmodel: {name: file, offload: true}")
    call(command, "tiny", "--hints", "fisher,gradients", "--bounds", "q=0:0.5", "--own", "4",
         "--config", str(tmp_path / "run.yaml"), "--set", "study.rounds=2")  # fmt: skip
    given, own, config, other = found
    assert own == 4
    assert given.values["hints"] == "fisher,gradients"
    assert (config.model.name, other.model.name) == ("tiny", "other")
    assert config.hints == ["fisher", "gradients"]
    assert config.budget.bounds == {"q": (0.0, 0.5)}
    assert (config.study.seed, config.study.rounds) == (7, 2)
    assert config.model.offload, "a flag that is not given leaves the file's value"


def test_an_option_may_have_another_default() -> None:
    found = []

    @options.takes(options.MODEL, replace(options.EVALUATOR, default="perplexity"))
    def command(given: options.Given) -> None:
        found.append(given.load().evaluator.name)

    call(command, "tiny")
    call(command, "tiny", "--evaluator", "tasks")
    assert found == ["perplexity", "tasks"]


def test_an_option_may_be_required() -> None:
    @options.takes(options.MODEL, replace(options.SPARSITY, default=options.REQUIRED))
    def command(given: options.Given) -> None:
        raise AssertionError

    with pytest.raises(Exception, match="sparsity"):
        call(command, "tiny")


@pytest.mark.parametrize("text", ["q", "q=1", "q=a:b"])
def test_bounds_of_another_form(text: str) -> None:
    with pytest.raises(ConfigError, match="ROLE=LOW:HIGH"):
        options.parse_bounds([text])


def test_commands_have_help() -> None:
    app = typer.Typer()
    for command in COMMANDS:
        app.command()(command)
        assert command.__doc__
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        flags = [flag for parameter in command.params for flag in parameter.opts]
        assert len(flags) == len(set(flags)), name


def test_an_experimental_plugin_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    with _one_line_warnings():
        for message in ("one is\nexperimental", "two", "one is\nexperimental"):
            warnings.warn(message, ExperimentalWarning, stacklevel=1)
    start = "sparsity-search: warning: "
    assert capsys.readouterr().err == f"{start}one is experimental\n{start}two\n"


def test_a_command_reports_an_experimental_plugin(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reported.py").write_text(
        "from dataclasses import dataclass\n"
        "from sparsity_search.interfaces.searcher import Searcher\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Nothing(Searcher):\n"
        "    experimental = 'it proposes nothing'\n"
        "    def propose(self, space, history, n, rng):\n"
        "        return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = cli("search", "./absent", "--sparsity", 0.6, "--searcher", "reported:Nothing",
                  "--out", tmp_path / "run")  # fmt: skip
    assert outcome.code == 2
    assert outcome.err.count("experimental: it proposes nothing") == 1
