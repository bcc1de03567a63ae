"""Options that several commands share: each is declared once, with the key that it sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli.declaring import (
    FILE,
    OVERRIDES,
    REQUIRED,
    Given,
    Option,
    Result,
    build_trackers,
    check_file,
    check_folder,
    check_out,
    check_push,
    count_removed,
    declare,
    declare_flag,
    list_plugins,
    parse_bounds,
    parse_fractions,
    split_names,
    takes,
)
from sparsity_search.runs.redact import STORAGE_VARIABLE

__all__ = [
    "REQUIRED",
    "Given",
    "Option",
    "Result",
    "build_trackers",
    "check_file",
    "check_folder",
    "check_out",
    "check_push",
    "count_removed",
    "parse_bounds",
    "parse_fractions",
    "takes",
]

PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub", metavar="USER/NAME", help="Upload the checkpoint; a new one is private."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track", metavar="NAME", help="Send the course to mlflow, tensorboard or wandb."
    ),
]
RecoverMinutes = Annotated[
    float | None, typer.Option("--minutes", help="Time of --recover; without it, its steps.")
]
OutFile = Annotated[Path, typer.Option("--out", help="The file to write.", callback=check_file)]
OutFolder = Annotated[
    Path, typer.Option("--out", help="The folder to write.", callback=check_folder)
]
RunDir = Annotated[Path, typer.Argument(help="A run directory.")]
RunStorage = Annotated[
    str | None,
    typer.Option(envvar=STORAGE_VARIABLE, help="URL of the run's storage, if it has one."),
]


def _list_spaces() -> list[str]:
    from sparsity_search.spaces.files import space_names

    return list(space_names())


def _list_plans() -> list[str]:
    from sparsity_search.config.presets import list_presets
    from sparsity_search.plans.plan import list_plans

    return [*list_plans(), *list_presets()]


#: Panels of the help of a command, after the options that matter first.
BUDGET_PANEL = "Budget and space"
METHOD_PANEL = "Methods, each fixes its part of the plan"
TEXT_PANEL = "More text"
RUN_PANEL = "Run"
MODEL_PANEL = "Model"

MODEL = Option(
    "model",
    "model.name",
    Annotated[
        str, typer.Argument(help="Hub id, local folder, .gguf file, or smollm2 (packaged).")
    ],
    REQUIRED,
)
EXCLUDE = declare(
    "exclude",
    "model.exclude",
    "Leave units with matching names alone.",
    metavar="REGEX",
    panel=MODEL_PANEL,
)
BLOCKS = declare(
    "blocks",
    "model.blocks",
    "Name of the decoder blocks, if not found by themselves.",
    metavar="REGEX",
    panel=MODEL_PANEL,
)
UNITS = declare(
    "units",
    "model.units",
    "What is removed: weights, width, heads, sublayers, blocks or experts.",
    panel=MODEL_PANEL,
    names=list_plugins("UNITS"),
)
REVISION = declare("revision", "model.revision", "Revision of a hub model.", panel=MODEL_PANEL)
DTYPE = declare("dtype", "model.dtype", "auto, bfloat16, float16 or float32.", panel=MODEL_PANEL)
DEVICE = declare("device", "model.device", "auto, cpu, cuda, ...", panel=MODEL_PANEL)
OFFLOAD = declare_flag(
    "offload",
    "model.offload",
    "Hold one block at a time: for models beyond memory.",
    panel=MODEL_PANEL,
)
TRUST_REMOTE_CODE = declare_flag(
    "trust_remote_code",
    "model.trust_remote_code",
    "Run code that comes with the model.",
    panel=MODEL_PANEL,
)
#: How the model is loaded, and which of its weights are units.
LOADING = (EXCLUDE, BLOCKS, UNITS, REVISION, DTYPE, DEVICE, OFFLOAD, TRUST_REMOTE_CODE)

#: The same for a checkpoint, whose profile says what was removed.
LOADING_SAME = tuple(option for option in LOADING if option is not UNITS)

SPARSITY = declare(
    "sparsity", "budget.sparsity", "Fraction of all prunable weights to remove.", float
)
SAVING = declare(
    "saving",
    "budget.saving",
    "Fraction to save, with --measure or for a space with options.",
    float,
    panel=BUDGET_PANEL,
)
MEASURE = declare(
    "measure",
    "measure.name",
    "What is saved: flops, latency (see `ls measures`), or a prices.json.",
    panel=BUDGET_PANEL,
    names=list_plugins("MEASURES"),
)
BOUNDS = Option(
    "bounds",
    "budget.bounds",
    Annotated[
        list[str] | None,
        typer.Option(
            "--bounds",
            metavar="ROLE=LOW:HIGH",
            help="Sparsity limits of a role.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ],
    parse=parse_bounds,
)
PLAN = declare(
    "plan", "plan", "Steps of the search: name or YAML file; see `ls plans`.", names=_list_plans
)
SPACE = declare(
    "space", "space", "Name or YAML file; see `ls spaces`.", panel=BUDGET_PANEL, names=_list_spaces
)
PRUNER = declare(
    "pruner",
    "pruner.name",
    "Local pruner; see `ls pruners`. MASK+UPDATE composes two.",
    panel=METHOD_PANEL,
    names=list_plugins("PRUNERS"),
)
PATTERN = declare(
    "pattern",
    "pruner.pattern",
    "Which weights compete: layer, row, block, or N:M (keep N of M).",
    panel=BUDGET_PANEL,
)
SEARCHER = declare(
    "searcher",
    "searcher.name",
    "See `ls searchers`.",
    panel=METHOD_PANEL,
    names=list_plugins("SEARCHERS"),
)
EVALUATOR = declare(
    "evaluator",
    "evaluator.name",
    "See `ls evaluators`.",
    panel=METHOD_PANEL,
    names=list_plugins("EVALUATORS"),
)
SENSITIVITY = declare(
    "sensitivity",
    "sensitivity.name",
    "See `ls sensitivities`.",
    names=list_plugins("SENSITIVITIES"),
)
INITIAL = replace(
    declare(
        "initial",
        "initial",
        "Allocators to start from, e.g. owl,uniform.",
        panel=METHOD_PANEL,
        names=list_plugins("ALLOCATORS"),
    ),
    parse=split_names("--initial"),
)
HINTS = replace(
    declare(
        "hints",
        "hints",
        "Advice: gradients, sensitivities (`ls sensitivities`), scores files.",
        panel=METHOD_PANEL,
        names=list_plugins("SENSITIVITIES"),
    ),
    parse=split_names("--hints"),
)
FINALISE = declare(
    "finalise",
    "finalise.name",
    "Pruner to rebuild with at the end; that of the search.",
    panel=METHOD_PANEL,
    names=list_plugins("PRUNERS"),
)
RECOVERY = declare(
    "recover",
    "recovery.name",
    "How kept weights are trained; see `ls recoveries`.",
    panel=METHOD_PANEL,
    names=list_plugins("RECOVERIES"),
)
CALIBRATION = declare(
    "calibration",
    "data.calibration",
    "Calibration text: file:PATH, hub:NAME[:CONFIG[:SPLIT]], sample, or self (by the model).",
)
SEARCH_TEXT = declare(
    "search_text", "data.search_text", "Text to score candidates on.", panel=TEXT_PANEL
)
FINAL_TEXT = declare(
    "final_text", "data.final_text", "Text of the final comparison.", panel=TEXT_PANEL
)
STAGES = declare(
    "stages",
    "study.stages",
    "Coarse to fine: each stage has half the step.",
    int,
    panel=METHOD_PANEL,
)
ROUNDS = declare("rounds", "study.rounds", "Rounds of each stage.", int, panel=METHOD_PANEL)
MINUTES = declare("minutes", "study.minutes", "Time of the whole job; 10 by default.", float)
SEED = declare("seed", "study.seed", "Of all random draws.", int, panel=RUN_PANEL)
STORAGE = Option(
    "storage",
    "study.storage",
    Annotated[
        str | None,
        typer.Option(
            envvar=STORAGE_VARIABLE, help="URL of an Optuna storage.", rich_help_panel=RUN_PANEL
        ),
    ],
)
WORKERS = declare(
    "workers",
    "study.workers",
    "Processes that measure, e.g. one for each GPU.",
    int,
    panel=RUN_PANEL,
)

CONFIG = declare(
    FILE,
    "",
    "YAML file with the configuration of a run, or see `ls presets`.",
    Path,
    panel=RUN_PANEL,
)
SET = Option(
    OVERRIDES,
    "",
    Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Override one configuration key.",
            rich_help_panel=RUN_PANEL,
        ),
    ],
)
#: The configuration itself: a file, and single keys.
CONFIGURATION = (CONFIG, SET)
