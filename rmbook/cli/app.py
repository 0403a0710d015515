"""The command line: `rmbook train`, `evaluate`, `describe`, `generate`, `sweep`, `report`, `record` and `claims`."""

import json
import sys
from pathlib import Path

import typer

from rmbook.cli import options as flag
from rmbook.cli import record as cli_record
from rmbook.cli import report as cli_report
from rmbook.cli import sweep as cli_sweep
from rmbook.cli.errors import one_line_errors
from rmbook.cli.options import parsed

# What needs torch is imported inside the commands: --help and mistakes in flags should not take seconds.

app = typer.Typer(
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
"""
GENERATE = """\b
Examples:
  rmbook generate runs/squad --prompt "Question: Where is Warsaw? Answer:"
  rmbook generate --model facebook/opt-125m --prompt - < prompt.txt
"""


@app.command(epilog=TRAIN)
def train(
    model: flag.Model = None,
    task: flag.Task = None,
    method: flag.Method = None,
    ratio: flag.Ratio = None,
    density: flag.Density = None,
    targets: flag.Targets = None,
    settings: flag.Settings = None,
    learning_rate: flag.LearningRate = None,
    epochs: flag.Epochs = None,
    max_steps: flag.MaxSteps = None,
    schedule: flag.Schedule = None,
    warmup_steps: flag.WarmupSteps = None,
    batch_size: flag.BatchSize = None,
    micro_batch_size: flag.MicroBatchSize = None,
    max_grad_norm: flag.MaxGradNorm = None,
    weight_decay: flag.WeightDecay = None,
    dropout: flag.Dropout = None,
    seed: flag.Seed = None,
    train_size: flag.TrainSize = None,
    dev_size: flag.DevSize = None,
    test_size: flag.TestSize = None,
    max_length: flag.MaxLength = None,
    data_dir: flag.DataDir = None,
    revision: flag.Revision = None,
    dtype: flag.Dtype = None,
    mixed_precision: flag.MixedPrecision = None,
    gradient_checkpointing: flag.GradientCheckpointing = None,
    config: flag.Config = None,
    output: flag.Output = None,
    resume: flag.Resume = None,
    quiet: flag.Quiet = False,
) -> None:
    """Fine-tune a model on one of the paper's tasks; all that comes of it goes to one folder."""
    given = {name: value for name, value in locals().items() if value is not None}
    values = {n: v for n, v in given.items() if n not in ("config", "output", "resume", "quiet")}
    with one_line_errors():
        from rmbook.errors import ConfigError
        from rmbook.runs.config import make_config, read_config
        from rmbook.runs.folder import first_process
        from rmbook.runs.run import resume_run, start_run

        if resume is None:
            run = make_config((read_config(config) if config else {}) | parsed(values))
            folder = output or run.default_folder()
            result = start_run(run, folder, not quiet)
        else:
            extra = given.keys() - {"resume", "quiet", "micro_batch_size", "gradient_checkpointing"}
            if extra:
                names = ", ".join("--" + name.replace("_", "-") for name in sorted(extra))
                raise ConfigError(f"--resume takes all settings from the run's folder: leave out {names}.")
            folder, result = resume, resume_run(resume, not quiet, **values)
        if first_process():
            typer.echo(_summary(result, folder))


@app.command(epilog=EVALUATE)
def evaluate(
    run: flag.Run = None,
    model: flag.Model = None,
    task: flag.Task = None,
    split: flag.Split = None,
    data_dir: flag.DataDir = None,
    test_size: flag.TestSize = None,
    seed: flag.Seed = None,
    max_length: flag.MaxLength = None,
    dtype: flag.Dtype = None,
    predictions: flag.Predictions = None,
    quiet: flag.Quiet = False,
) -> None:
    """Score a run, or a model as it is, on a task: one JSON object on standard output."""
    values = {"task": task, "data_dir": data_dir, "test_size": test_size, "seed": seed, "max_length": max_length}
    with one_line_errors():
        from rmbook.runs.evaluate import evaluate_run

        given = {name: value for name, value in values.items() if value is not None}
        score = evaluate_run(run, model, split or "test", given, dtype, predictions, progress=not quiet)
        typer.echo(json.dumps(score))


@app.command(epilog=DESCRIBE)
def describe(
    path: flag.Run = None,
    model: flag.Model = None,
    method: flag.Method = None,
    ratio: flag.Ratio = None,
    density: flag.Density = None,
    targets: flag.Targets = None,
    settings: flag.Settings = None,
    seed: flag.Seed = None,
) -> None:
    """Say what a run or an adapter file holds, or what a method would train in a model."""
    values = {"method": method, "ratio": ratio, "density": density, "targets": targets, "settings": settings}
    with one_line_errors():
        from rmbook.errors import ConfigError
        from rmbook.runs.describe import describe_method, describe_path

        if (path is None) == (model is None):
            raise ConfigError("give the folder of a run, an adapter file, or --model; one of them.")
        given = parsed({name: value for name, value in (values | {"seed": seed}).items() if value is not None})
        typer.echo(describe_method(model, **given) if path is None else describe_path(Path(path)))


@app.command(epilog=GENERATE)
def generate(
    run: flag.Run = None,
    model: flag.Model = None,
    prompt: flag.Prompt = None,
    max_new_tokens: flag.MaxNewTokens = 50,
    dtype: flag.Dtype = None,
) -> None:
    """Continue a text, greedily, up to the end of the line, as the paper's SQuAD and DROP do."""
    with one_line_errors():
        from rmbook.errors import ConfigError
        from rmbook.runs.evaluate import continue_text

        if prompt is None:
            raise ConfigError("--prompt must be given: a text to continue, or - for standard input.")
        text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
        typer.echo(continue_text(run, model, text, max_new_tokens, dtype))


def _summary(result: dict, folder) -> str:
    best = (
        f"best epoch {result['best_epoch']} of {len(result['history'])}" if result["best_epoch"] else "no epoch ended"
    )
    test = ", ".join(f"test {name} {score:.4f}" for name, score in (result["test"] or {}).items())
    trained = f"{result['trainable']:,} of {result['total']:,} parameters trained ({result['ratio']:.4%})"
    count = result["cut_prompts"]
    cut = f"; {count} prompts were cut to {result['max_length']} tokens" if count else ""
    return f"{result['status']}: {best}{', ' if test else ''}{test}; {trained}{cut}; see {folder}"


