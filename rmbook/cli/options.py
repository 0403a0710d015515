"""The flags of the command line. Each is None where it is not given, so that a settings file or a default can speak."""

import json
from typing import Annotated

import typer


def _flag(kind: type, *names: str, text: str):
    return Annotated[kind | None, typer.Option(*names, help=text, show_default=False)]


Run = Annotated[str | None, typer.Argument(help="Folder of a run.", show_default=False)]
Model = _flag(str, "--model", text="Name on the hub, or folder.")
Revision = _flag(str, "--revision", text="Commit or branch of the model on the hub.")
Dtype = _flag(str, "--dtype", text="Of frozen weights: float32 (default), bfloat16, float16, float64.")
Task = _flag(
    str,
    "--task",
    text="SST-2, RTE, CB, BoolQ, WSC, WiC, MultiRC, COPA, ReCoRD, SQuAD or DROP; for CLIP CIFAR10, GTSRB, MNIST, SVHN "
    "or RESISC45.",
)
DataDir = _flag(str, "--data-dir", text="Folder with the task's original files, instead of the hub.")
Method = _flag(
    str,
    "--method",
    text="full, random_masking (default), structured_masking, lora, adalora, adapter, prefix or bitfit.",
)
Ratio = _flag(float, "--ratio", text="Masks: trained entries / all parameters of the model.")
Density = _flag(float, "--density", text="Masks: probability that an entry of a target matrix is trained.")
Targets = _flag(str, "--targets", text="qv (default), attention, o_proj, mlp, all_linear, or layer names with commas.")
Settings = _flag(list[str], "--set", text="A further setting of the method, as in --set rank=16.")
LearningRate = _flag(float, "--learning-rate", "--lr", text="Of AdamW.")
Epochs = _flag(int, "--epochs", text="Passes over the training records [5].")
BatchSize = _flag(int, "--batch-size", text="Records a step, over all processes [8].")
MicroBatchSize = _flag(int, "--micro-batch-size", text="Records computed at a time, to save memory.")
Schedule = _flag(str, "--schedule", text="Of the learning rate: constant (default) or cosine.")
WarmupSteps = _flag(int, "--warmup-steps", text="First steps, over which the learning rate rises [0].")
MaxSteps = _flag(int, "--max-steps", text="The run ends after so many steps, if not after its epochs.")
MaxGradNorm = _flag(float, "--max-grad-norm", text="The gradient is clipped to this norm [1].")
WeightDecay = _flag(float, "--weight-decay", text="Of AdamW [0].")
Dropout = _flag(float, "--dropout", text="Probability of all dropout layers [the model's own].")
Seed = _flag(int, "--seed", text="Of the records, the mask, the order and dropout [0].")
TrainSize = _flag(int, "--train-size", text="Training records [1000].")
DevSize = _flag(int, "--dev-size", text="Records that choose the best epoch [the task's own, 500 for most].")
TestSize = _flag(int, "--test-size", text="Test records [1000].")
MaxLength = _flag(int, "--max-length", text="Longest prompt in tokens [2048, or what the model can take].")
MixedPrecision = _flag(str, "--mixed-precision", text="no (default), bf16 or fp16.")
GradientCheckpointing = _flag(
    bool, "--gradient-checkpointing/--no-gradient-checkpointing", text="Less memory for a third more time."
)
Config = _flag(str, "--config", text="YAML or JSON file with settings, such as a run's config.json; flags win.")
Output = _flag(str, "--output", text="Folder of the run [runs/MODEL-TASK-METHOD-DIGEST].")
Resume = _flag(str, "--resume", text="Folder of an interrupted run to go on with.")
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Split = _flag(str, "--split", text="test (default), dev, train, or validation: all of the task's validation split.")
Predictions = _flag(str, "--predictions", text="File for the answers, one JSON object a line.")
Prompt = _flag(str, "--prompt", text="The text to continue; - reads it from standard input.")
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer in tokens.", min=1)]


def parsed(values: dict) -> dict:
    """Flags as settings: the names in --targets, the pairs of --set."""
    from rmbook.errors import ConfigError

    if "," in values.get("targets", ""):
        values = values | {"targets": tuple(name.strip() for name in values["targets"].split(","))}
    if "settings" in values:
        pairs = [text.partition("=") for text in values["settings"]]
        if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
            raise ConfigError(f"--set takes NAME=VALUE, as in --set rank=16; got {wrong[0]!r}.")
        values = values | {"settings": {name: _value(text) for name, _, text in pairs}}
    return values


def _value(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
