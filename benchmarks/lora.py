"""A LoRA fine-tune of a pruned model whose zeros stay: docs/recovery.md.

    python benchmarks/lora.py --data DATA --checkpoint PRUNED --out runs/lora

Trains adapters of peft in the `Trainer` of transformers on questions of ARC-easy, with
`MaskKeeper` and without, merges them by `merge-adapter`, and measures what was pruned and what is
merged. The first questions are left out of the training and measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from commands import Commands, take_turns  # these files are beside this one
from peft import LoraConfig, get_peft_model
from quality import Examination
from tables import write_table
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from sparsity_search import MaskKeeper, SparsityProfile
from sparsity_search.data.text_files import read_json_lines
from sparsity_search.evaluators.tasks.continuations import encode
from sparsity_search.models.anatomy.prunable import PrunableModel


def read_rows(arguments: argparse.Namespace, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return the questions to train on; only the right answer's tokens are targets."""
    rows = []
    for _, row in list(read_json_lines(arguments.data / "arc_easy.jsonl"))[arguments.questions :]:
        context, answer = f"{row['query'].rstrip()}\nAnswer:", f" {row['choices'][row['gold']]}"
        inputs, targets = encode(tokenizer, context, answer, None)
        tokens = [*inputs.tolist(), int(targets[-1])]
        hidden = len(tokens) - len(targets)
        rows.append({"input_ids": tokens, "labels": [-100] * hidden + tokens[hidden:]})
    return rows


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return a batch; positions after a row's end are seen by no target."""
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    return {
        key: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


def train(arguments: argparse.Namespace, keep: bool, out: Path) -> float:
    """Train an adapter of the checkpoint, and return the seconds."""
    torch.manual_seed(arguments.seed)
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    rows = read_rows(arguments, AutoTokenizer.from_pretrained(arguments.checkpoint))
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    adapted = get_peft_model(model, settings)
    trainer = Trainer(
        adapted,
        TrainingArguments(
            output_dir=str(out / "trainer"),
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            learning_rate=5e-4,
            lr_scheduler_type="cosine",
            warmup_steps=arguments.steps // 10,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=True,
            seed=arguments.seed,
        ),
        train_dataset=rows,
        data_collator=pad,
        callbacks=[MaskKeeper(adapted)] if keep else [],
    )
    started = time.monotonic()
    trainer.train()
    adapted.save_pretrained(out)
    return time.monotonic() - started


def count_zeros(checkpoint: Path) -> dict[str, Any]:
    """Return the zeros of a checkpoint's prunable weights, and whether they are its profile's."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    subject = PrunableModel(model)
    profile = SparsityProfile.load(checkpoint / "profile.json")
    zeros = subject.zeros()
    return {"zeros": zeros.n_removed, "as_profile": zeros.removed == profile.removed}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--checkpoint", type=Path, required=True, help="pruned by `prune`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--questions", type=int, default=300, help="measured, not trained on")
    parser.add_argument("--windows", type=int, default=20, help="of 1,024 tokens of the test text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="write all that is measured here")
    return parser.parse_args()


def merge(commands: Commands, arguments: argparse.Namespace, adapter: Path, out: Path) -> None:
    """Merge an adapter, and verify the result."""
    log = arguments.out / "log.txt"
    shutil.rmtree(out, ignore_errors=True)
    commands.run(["merge-adapter", arguments.checkpoint, adapter, "--mask", "--out", out], log)
    commands.run(["verify", out], log)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    exam = Examination(arguments.data, arguments.windows, 1024, arguments.questions, 1)
    rows: dict[str, dict[str, Any]] = {}
    with take_turns(arguments.out, arguments.threads) as commands:
        for name in ("pruned", "kept", "free"):
            file, checkpoint = arguments.out / f"{name}.json", arguments.checkpoint
            if not file.exists():
                seconds = 0.0
                if name != "pruned":
                    adapter, checkpoint = arguments.out / name, arguments.out / f"{name}-merged"
                    seconds = train(arguments, name == "kept", adapter)
                    merge(commands, arguments, adapter, checkpoint)
                found = exam.measure(str(checkpoint))
                row = {key: found[key] for key in ("perplexity", "arc_easy")}
                file.write_text(
                    json.dumps({**row, **count_zeros(checkpoint), "seconds": round(seconds, 1)})
                )
            rows[name] = json.loads(file.read_text())
            print(name, rows[name], flush=True)
    if arguments.results:
        write_table(arguments.results, {"steps": arguments.steps, "rows": rows})


if __name__ == "__main__":
    main()
