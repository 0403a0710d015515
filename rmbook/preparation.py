"""Everything that a run needs, loaded and checked before anything is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rmbook.adapter import base_fingerprint
from rmbook.applied import AppliedMethod
from rmbook.base_models import BaseModels
from rmbook.encoding import MAX_LENGTH
from rmbook.evaluation import predict, to_questions
from rmbook.language_models import load_language_model, max_positions
from rmbook.methods import apply_method
from rmbook.metrics import task_score
from rmbook.objectives import Question
from rmbook.records import Record, load_records
from rmbook.run_config import DTYPES, ConfigError, RunConfig
from rmbook.splits import Splits, sample_splits
from rmbook.tasks import find_task


@dataclass
class PreparedRun:
    """All that a run needs, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings.
        accelerator: the processes and the device.
        model: with the method applied.
        tokenizer: of the model.
        method: what was applied.
        splits: the records.
        questions: train and dev records with their tokens.
        max_length: longest prompt in tokens.
        fingerprint: of the base model, for methods that are no masks.
        bases: what the model was taken from, if it is to be put back.
    """

    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    method: AppliedMethod
    splits: Splits
    questions: dict[str, list[Question]]
    max_length: int
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
    model, tokenizer = (bases.take if bases else load_language_model)(
        config.model, dtype=DTYPES[config.dtype], device=accelerator.device, revision=config.revision
    )
    longest = longest_prompt(model, config.max_length)
    questions = {
        "train": to_questions(splits.train, model, tokenizer, longest),
        "dev": to_questions(splits.dev, model, tokenizer, longest),
    }
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
    return PreparedRun(config, accelerator, model, tokenizer, method, splits, questions, longest, fingerprint, bases)


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
        settings.setdefault("total_steps", config.epochs * math.ceil(examples / config.batch_size))
    return settings


def score_records(prepared: PreparedRun, records: Sequence[Record], progress: bool) -> dict[str, float]:
    """The task's metric over records, which the processes share."""
    accelerator = prepared.accelerator
    own = records[accelerator.process_index :: accelerator.num_processes]
    with tqdm(total=len(own), desc="test", unit="record", leave=False, disable=not progress) as bar:
        answers = predict(prepared.model, prepared.tokenizer, own, prepared.max_length, bar.update) if own else []
    numbers = range(accelerator.process_index, len(records), accelerator.num_processes)
    pairs = gather_object(list(zip(numbers, answers, strict=True)))
    return task_score(records, [answer for _, answer in sorted(pairs)])
