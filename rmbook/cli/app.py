"""The command line: `rmbook train`, `evaluate`, `describe`, `generate`, `sweep`, `report`, `record` and `claims`."""

import os
import sys

from rmbook.cli import interrupt

if os.path.basename(sys.argv[0]) == "rmbook":  # the installed command, of which this is the first module
    interrupt.install()

import json
from pathlib import Path
from typing import Annotated

import typer

from rmbook.cli import record as cli_record
from rmbook.cli import report as cli_report
from rmbook.cli import sweep as cli_sweep
from rmbook.cli.errors import OneLineGroup
from rmbook.cli.options import Quiet, Run, path_flag, takes
from rmbook.errors import ConfigError, shown
from rmbook.methods.settings import describe_settings
from rmbook.runs.config import RunConfig, make_config, read_config
from rmbook.settings import COUNT

# What needs torch is imported inside the commands: --help and mistakes in flags should not take seconds.
# ruff: noqa: E402 - Ctrl-C is handled before anything else is loaded

LONGEST_PROMPT = 10**7  # characters; a model takes far fewer

app = typer.Typer(
    cls=OneLineGroup,
    help="Random masks for parameter-efficient fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_sweep.app, name="sweep")
app.command(epilog=cli_report.REPORT)(cli_report.report)
app.command(epilog=cli_record.RECORD)(cli_record.record)
app.command()(cli_record.claims)

TRAIN = """\b
Examples:
  rmbook train --model facebook/opt-1.3b --task rte --method random_masking --ratio 1e-4 --lr 1e-2
  rmbook train --model facebook/opt-125m --task sst2 --method lora --lr 1e-4 --data-dir ~/glue --output runs/lora
  rmbook train --config runs/lora/config.json --seed 1
  rmbook train --resume runs/lora
  rmbook train --resume runs/lora --model moved/model --data-dir moved/glue        (the same ones, elsewhere)
  accelerate launch --num_processes 4 -m rmbook train --model facebook/opt-13b --task boolq --ratio 1e-5 --lr 1e-1
Images, in the paper's settings (those of the grid table2; no setting's default is another for images):
  rmbook train --model openai/clip-vit-base-patch16 --task cifar10 --ratio 1e-3 --lr 1e-2 --targets mlp \\
    --train-size 1000000 --test-size 1000000 --epochs 20 --max-steps 2000 --batch-size 128 --weight-decay 0.1 \\
    --schedule cosine --warmup-steps 200
"""
EVALUATE = """\b
Examples:
  rmbook evaluate runs/lora
  rmbook evaluate runs/lora --split validation --predictions answers.jsonl
  rmbook evaluate --model facebook/opt-125m --task rte        (without any training)
"""
DESCRIBE = """\b
Examples:
  rmbook describe runs/lora
  rmbook describe runs/masks/adapter.safetensors
  rmbook describe --model facebook/opt-125m --method random_masking --ratio 1e-4        (what would be trained)
  rmbook describe --method adalora        (what --set takes for it)
"""
GENERATE = """\b
Examples:
  rmbook generate runs/squad --prompt "Question: Where is Warsaw? Answer:"
  rmbook generate --model facebook/opt-125m --prompt - < prompt.txt
"""


@app.command(epilog=TRAIN)
@takes(RunConfig)
def train(
    given: dict,
    config: Annotated[
        str | None, path_flag("--config", help="YAML or JSON file of settings, such as a run's config.json; flags win.")
    ] = None,
    output: Annotated[
        str | None, path_flag("--output", help="Folder of the run [runs/MODEL-TASK-METHOD-DIGEST].")
    ] = None,
    resume: Annotated[str | None, path_flag("--resume", help="Folder of an interrupted run to resume.")] = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on one of the paper's tasks; all that comes of it goes to one folder."""
    if resume is None:
        run = make_config((read_config(config) if config else {}) | given)
        from rmbook.runs.run import start_run

        folder = output or run.default_folder()
        result = start_run(run, folder, not quiet)
    else:
        extra = [*(given.keys() - {"micro_batch_size", "gradient_checkpointing", "model", "data_dir"})]
        extra += [name for name, value in (("config", config), ("output", output)) if value is not None]
        if extra:
            names = ", ".join("--" + name.replace("_", "-") for name in sorted(extra))
            raise ConfigError(f"--resume takes all settings from the run's folder: leave out {names}.")
        from rmbook.runs.run import resume_run

        folder, result = resume, resume_run(resume, not quiet, **given)
    from rmbook.runs.folder import first_process

    if first_process():
        typer.echo(_summary(result, folder))


@app.command(epilog=EVALUATE)
@takes(RunConfig, "model", "task", "data_dir", "test_size", "seed", "max_length", "dtype")
def evaluate(
    given: dict,
    run: Run = None,
    split: Annotated[
        str, typer.Option("--split", help="test, dev, train, or validation: all of the task's validation split.")
    ] = "test",
    predictions: Annotated[
        str | None, path_flag("--predictions", help="File for the answers, one JSON object a line.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score a run, or a model as it is, on a task: one JSON object on standard output."""
    from rmbook.runs.evaluate import evaluate_run

    model, dtype = given.pop("model", None), given.pop("dtype", None)
    typer.echo(json.dumps(evaluate_run(run, model, split, given, dtype, predictions, progress=not quiet)))


@app.command(epilog=DESCRIBE)
@takes(RunConfig, "model", "method", "ratio", "density", "targets", "settings", "seed")
def describe(given: dict, path: Run = None) -> None:
    """Say what a run or an adapter file holds, what a method would train in a model, or what can be set of a method."""
    model = given.pop("model", None)
    if path is None and model is None and given.keys() == {"method"}:
        typer.echo(describe_settings(given["method"]))
        return
    if (path is None) == (model is None):
        raise ConfigError("give the folder of a run, an adapter file, or --model; one of them.")
    if path is not None and given:
        raise ConfigError(f"--{next(iter(given))} belongs to --model: {shown(path)} has its own settings.")
    from rmbook.runs.describe import describe_method, describe_path

    typer.echo(describe_method(model, **given) if path is None else describe_path(Path(path)))


@app.command(epilog=GENERATE)
@takes(RunConfig, "model", "dtype")
def generate(
    given: dict,
    run: Run = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The text to continue; - reads standard input.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1, max=COUNT)] = 50,
) -> None:
    """Continue a text, greedily, up to the end of the line, as the paper's SQuAD and DROP do."""
    if prompt is None:
        raise ConfigError("--prompt must be given: a text to continue, or - for standard input.")
    text = _standard_input() if prompt == "-" else prompt
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"the prompt must be text in UTF-8, got {shown(text)}.")
    from rmbook.runs.evaluate import continue_text

    typer.echo(continue_text(run, given.get("model"), text, max_new_tokens, given.get("dtype")))


def _standard_input() -> str:
    try:
        text = sys.stdin.read(LONGEST_PROMPT + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input must be text in UTF-8: {error.reason} at byte {error.start}.") from None
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(f"standard input has more than {LONGEST_PROMPT:,} characters: shorten the prompt.")
    return text.rstrip("\n")


def _summary(result: dict, folder) -> str:
    best = (
        f"best epoch {result['best_epoch']} of {len(result['history'])}" if result["best_epoch"] else "no epoch ended"
    )
    test = ", ".join(f"test {name} {score:.4f}" for name, score in (result["test"] or {}).items())
    trained = f"{result['trainable']:,} of {result['total']:,} parameters trained ({result['ratio']:.4%})"
    count = result["cut_prompts"]
    cut = f"; {count} prompts were cut to {result['max_length']} tokens" if count else ""
    return f"{result['status']}: {best}{', ' if test else ''}{test}; {trained}{cut}; see {folder}"
