"""Everything that a run needs, loaded and checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rmbook.adapters.base import base_fingerprint
from rmbook.errors import ConfigError
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.apply import apply_method
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.models.encoding import MAX_LENGTH, Question
from rmbook.models.language import max_positions
from rmbook.models.predict import predict, to_questions
from rmbook.models.reuse import BaseModels, load_for_task
from rmbook.runs.config import DTYPES, RunConfig
from rmbook.tasks.image_files import ImageRecord
from rmbook.tasks.image_task import ImageTask
from rmbook.tasks.metrics import task_score
from rmbook.tasks.records import Record, load_records
from rmbook.tasks.splits import Splits, sample_splits
from rmbook.tasks.task import find_task
from rmbook.training.objectives import Answering, Classification, Objective, OptionChoice


@dataclass
class PreparedRun:
    """All that a run needs, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings.
        accelerator: the processes and the device.
        model: with the method applied.
        tokenizer: of the model; of one of images, its preprocessing.
        method: what was applied.
        splits: the records.
        questions: train and dev records with their tokens; images as they are.
        objective: what is minimised.
        max_length: longest prompt in tokens; None for images.
        fingerprint: of the base model, for methods that are no masks.
        bases: what the model was taken from, if it is to be put back.
    """

    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | Preprocessing
    method: AppliedMethod
    splits: Splits
    questions: dict[str, list[Question] | list[ImageRecord]]
    objective: Objective
    max_length: int | None
    fingerprint: str | None
    bases: BaseModels | None = None


def prepare_run(config: RunConfig, bases: BaseModels | None = None) -> PreparedRun:
    """Load records and model, apply the method and encode the prompts.

    Args:
        config: the settings.
        bases: where the model may be loaded already.

    Raises:
        TaskError, ModelError, MethodError, TargetError, ConfigError, ValueError: what came does not fit.
    """
    task = find_task(config.task)
    records = [load_records(task.name, split, config.data_dir) for split in ("train", "validation")]
    splits = sample_splits(*records, config.seed, config.train_size, config.dev_size, config.test_size)
    AcceleratorState._reset_state()  # it keeps one precision a process, where a notebook may want another run's
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    place = {"dtype": DTYPES[config.dtype], "device": accelerator.device, "revision": config.revision}
    if bases:
        model, tokenizer = bases.take(config.model, task=task.name, **place)
    else:
        model, tokenizer = load_for_task(task.name, config.model, **place)
    parts = {"train": splits.train, "dev": splits.dev}
    if isinstance(task, ImageTask):  # a batch's images are decoded when it is made
        longest, objective = None, Classification(tokenizer.batch)
    else:
        longest = longest_prompt(model, config.max_length)
        objective = Answering() if task.objective == "answer" else OptionChoice()
        parts = {name: to_questions(part, model, tokenizer, longest) for name, part in parts.items()}
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    masks = config.method.endswith("_masking")
    fingerprint = None if masks else base_fingerprint(model)
    method = apply_method(
        model,
        config.method,
        targets=config.targets,
        ratio=config.ratio,
        density=config.density,
        seed=config.seed,
        **_settings(config, len(splits.train)),
    )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return PreparedRun(
        config, accelerator, model, tokenizer, method, splits, parts, objective, longest, fingerprint, bases
    )


def longest_prompt(model: nn.Module, wanted: int | None) -> int:
    """`wanted` if the model can take it; 2,048 tokens or all that it can take if None."""
    limit = max_positions(model) or MAX_LENGTH
    if wanted is not None and max_positions(model) and wanted > limit:
        raise ConfigError(f"max_length {wanted} is more than the {limit} tokens that the model can take: lower it.")
    return wanted or min(limit, MAX_LENGTH)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of the model this probability, in place: the layers and the attention's own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout", "attention_dropout", "activation_dropout"):  # numbers in OPT's and Llama's layers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def _settings(config: RunConfig, examples: int) -> dict:
    settings = dict(config.settings)
    if config.method == "adalora" and "initial_rank" in settings:  # its schedule needs to know the run's length
        settings.setdefault("total_steps", config.training().steps(examples))
    return settings


def score_records(prepared: PreparedRun, records: Sequence[Record | ImageRecord], progress: bool) -> dict[str, float]:
    """The task's metric over records, which the processes share."""
    accelerator = prepared.accelerator
    own = records[accelerator.process_index :: accelerator.num_processes]
    with tqdm(total=len(own), desc="test", unit="record", leave=False, disable=not progress) as bar:
        answers = predict(prepared.model, prepared.tokenizer, own, prepared.max_length, bar.update) if own else []
    numbers = range(accelerator.process_index, len(records), accelerator.num_processes)
    pairs = gather_object(list(zip(numbers, answers, strict=True)))
    return task_score(records, [answer for _, answer in sorted(pairs)])
