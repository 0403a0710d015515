"""Scores and texts of a finished run, or of a model as it is."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rmbook.errors import ConfigError, closest
from rmbook.files import check_writable, replacing
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.models.encoding import Encoding, start_token
from rmbook.models.generation import generate_answers
from rmbook.models.language import max_positions
from rmbook.models.predict import predict
from rmbook.models.reuse import load_for_task
from rmbook.runs.config import DTYPES, RunConfig
from rmbook.runs.folder import load_run
from rmbook.runs.prepare import longest_prompt
from rmbook.tasks.image_files import ImageRecord
from rmbook.tasks.image_task import ImageTask
from rmbook.tasks.metrics import task_score
from rmbook.tasks.records import Record, load_records
from rmbook.tasks.splits import sample_splits
from rmbook.tasks.task import find_task

SPLITS = ("test", "dev", "train", "validation")


def evaluate_run(
    run: str | None,
    model_name: str | None,
    split: str = "test",
    changes: dict | None = None,
    dtype: str | None = None,
    predictions: str | None = None,
    progress: bool = True,
) -> dict:
    """The metric of a run, or of a model as it is, over records of a task.

    Args:
        run: folder of a finished run; give this or model_name.
        model_name: a model as it is; then `changes` must name a task.
        split: "test", "dev" or "train" as the run draws them, or "validation": all of the task's validation split.
        changes: of task, data_dir, test_size, seed and max_length; a run has its own.
        dtype: for a model as it is; float32 if None.
        predictions: file for the answers.
        progress: show a bar on standard error.

    Raises:
        ConfigError: what came is not enough, or too much.
        Also what `load_run`, `load_for_task` and `load_records` raise.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: {closest(split, SPLITS)}")
    if predictions is not None:
        check_writable(Path(predictions))
    changes = changes or {}
    _check_source(run, model_name)
    if run is None and "task" not in changes:
        raise ConfigError("--task must be given for a model that no run trained.")
    model, tokenizer, config = _load(run, model_name, changes, dtype)
    records = _records(config, split)
    longest = None if isinstance(tokenizer, Preprocessing) else longest_prompt(model, config.max_length)
    with tqdm(total=len(records), unit="record", leave=False, disable=not progress) as bar:
        answers = predict(model, tokenizer, records, longest, bar.update)
    if predictions is not None:
        _write_predictions(Path(predictions), records, answers)
    return {"task": config.task, "split": split, "records": len(records)} | task_score(records, answers)


def continue_text(run: str | None, model_name: str | None, text: str, max_new_tokens: int, dtype: str | None) -> str:
    """What a run's model, or a model as it is, writes after `text`, up to the end of the line.

    Raises:
        ConfigError: the text is empty, or too long for the model.
    """
    model, tokenizer, config = _load(run, model_name, {"task": "SQuAD"} if run is None else {}, dtype)
    if isinstance(tokenizer, Preprocessing):
        raise ConfigError(f"the run in {run} is of {config.task}, images: its model writes no text.")
    start = start_token(tokenizer, model.config.model_type)
    ids = ([] if start is None else [start]) + tokenizer.encode(text, add_special_tokens=False)
    if not text:
        raise ConfigError("the prompt is empty: give the text that the model is to continue.")
    limit = max_positions(model)
    if limit and len(ids) + max_new_tokens > limit:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, and with {max_new_tokens} new ones that is more than the {limit} that "
            "the model can take: shorten it, or lower --max-new-tokens."
        )
    return generate_answers(model, tokenizer, [Encoding(ids, 0)], max_new_tokens=max_new_tokens)[0]


def _check_source(run: str | None, model_name: str | None) -> None:
    if (run is None) == (model_name is None):
        raise ConfigError("give the folder of a run, or --model; one of them.")


def _load(
    run: str | None, model_name: str | None, changes: dict, dtype: str | None
) -> tuple[nn.Module, PreTrainedTokenizerBase | Preprocessing, RunConfig]:
    _check_source(run, model_name)
    if run is not None and dtype is not None:
        raise ConfigError("a run has its own dtype: leave out --dtype.")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: {closest(dtype, DTYPES)}")
    if run is not None:
        model, tokenizer, config = load_run(run)
        changed = dataclasses.replace(config, **changes)
        images = any(isinstance(find_task(task), ImageTask) for task in (config.task, changed.task))
        if changed.task != config.task and images:  # a head of class names is one task's
            raise ConfigError(f"the run in {run} is of {config.task} and cannot do {changed.task}: leave out --task.")
        return model, tokenizer, changed
    # The method plays no part: a configuration must have one.
    config = RunConfig(model=model_name, learning_rate=1.0, method="full", dtype=dtype or "float32", **changes)
    return *load_for_task(config.task, model_name, dtype=getattr(torch, config.dtype)), config


def _records(config: RunConfig, split: str) -> Sequence[Record | ImageRecord]:
    if split == "validation":
        return load_records(config.task, "validation", config.data_dir)
    train, validation = (load_records(config.task, name, config.data_dir) for name in ("train", "validation"))
    return getattr(
        sample_splits(train, validation, config.seed, config.train_size, config.dev_size, config.test_size), split
    )


def _write_predictions(path: Path, records: Sequence[Record | ImageRecord], answers: Sequence) -> None:
    rows = (
        {"answer": answer, "right": list(record.answers or record.gold)}
        for record, answer in zip(records, answers, strict=True)
    )
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
