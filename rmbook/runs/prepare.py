"""Everything that a run needs, loaded and checked before anything is written."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rmbook.adapters.base import base_fingerprint
from rmbook.errors import ConfigError
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.apply import apply_method
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.models.reuse import BaseModels
from rmbook.runs.config import MASKS, RunConfig
from rmbook.tasks.catalog import find_task
from rmbook.tasks.splits import Splits, draw_splits
from rmbook.tasks.task import Task
from rmbook.training.accelerator import new_accelerator, shards_base
from rmbook.training.objectives import Objective


@dataclass
class PreparedRun:
    """All that a run needs, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings.
        accelerator: the processes and the device.
        model: with the method applied.
        tokenizer: of the model; of one of images, its preprocessing.
        method: what was applied.
        task: the task.
        splits: the examples.
        encoded: train and dev examples as the objective takes them.
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
    task: Task
    splits: Splits
    encoded: dict[str, list]
    objective: Objective
    max_length: int | None
    fingerprint: str | None
    bases: BaseModels | None = None


def prepare_run(
    config: RunConfig, bases: BaseModels | None = None, accelerator: Accelerator | None = None
) -> PreparedRun:
    """Load examples and model, apply the method and encode the prompts.

    Args:
        config: the settings.
        bases: where the model may be loaded already.
        accelerator: the processes and the device; made from the settings and the environment if None.

    Raises:
        TaskError, ModelError, MethodError, TargetError, ConfigError, ValueError: what came does not fit.
    """
    task = find_task(config.task)
    splits = draw_splits(task, config.data_dir, config.seed, config.train_size, config.dev_size, config.test_size)
    accelerator = accelerator or new_accelerator(config.mixed_precision)
    if shards_base(accelerator) and config.method not in MASKS:
        raise ConfigError(f"FSDP is supported for {' and '.join(MASKS)}, not for {config.method}: launch without it.")
    device = "cpu" if shards_base(accelerator) else accelerator.device  # FSDP takes it from there, shard by shard
    place = {"dtype": getattr(torch, config.dtype), "device": torch.device(device), "revision": config.revision}
    load = functools.partial(bases.take, task.load_model) if bases else task.load_model
    model, tokenizer = load(config.model, **place)
    longest = task.prompt_limit(model, config.max_length)
    parts = {"train": splits.train, "dev": splits.dev}
    encoded = {name: task.encode(part, model, tokenizer, longest) for name, part in parts.items()}
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    fingerprint = None if config.method in MASKS else base_fingerprint(model)
    method = apply_method(
        model,
        config.method,
        targets=config.targets,
        ratio=config.ratio,
        density=config.density,
        seed=config.seed,
        **asdict(config.method_settings(len(splits.train))),
    )
    if not method.trainable:
        raise ConfigError(f"{config.method} at so small a ratio or density trains nothing: raise it.")
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return PreparedRun(
        config=config,
        accelerator=accelerator,
        model=model,
        tokenizer=tokenizer,
        method=method,
        task=task,
        splits=splits,
        encoded=encoded,
        objective=task.objective(tokenizer),
        max_length=longest,
        fingerprint=fingerprint,
        bases=bases,
    )


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of the model this probability, in place: the layers and the attention's own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout", "attention_dropout", "activation_dropout"):  # numbers in OPT's and Llama's layers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def score_examples(prepared: PreparedRun, examples: Sequence, progress: bool) -> dict[str, float]:
    """The task's metric over examples, which the processes share."""
    accelerator, task = prepared.accelerator, prepared.task
    if shards_base(accelerator):  # all processes do all examples together
        with tqdm(total=len(examples), desc="test", unit="example", leave=False, disable=not progress) as bar:
            answers = task.predict(prepared.model, prepared.tokenizer, examples, prepared.max_length, bar.update)
        return task.score(examples, answers)
    own = examples[accelerator.process_index :: accelerator.num_processes]
    with tqdm(total=len(own), desc="test", unit="example", leave=False, disable=not progress) as bar:
        given = (prepared.model, prepared.tokenizer, own, prepared.max_length, bar.update)
        answers = task.predict(*given) if own else []
    numbers = range(accelerator.process_index, len(examples), accelerator.num_processes)
    pairs = gather_object(list(zip(numbers, answers, strict=True)))
    return task.score(examples, [answer for _, answer in sorted(pairs)])
