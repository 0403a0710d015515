"""Scores and texts of a finished run, or of a model as it is."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rmbook.errors import ConfigError, closest
from rmbook.files import check_writable, replacing
from rmbook.methods.saved import load_trained
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.models.encoding import Encoding, check_tokens, start_token
from rmbook.models.generation import generate_answers
from rmbook.models.language import max_positions
from rmbook.offline.made import resolve
from rmbook.runs.config import DTYPES, RunConfig
from rmbook.runs.fingerprints import data_fingerprint, weights_fingerprint
from rmbook.runs.folder import check_inputs, run_config
from rmbook.runs.result import RunError
from rmbook.tasks.catalog import find_task
from rmbook.tasks.splits import draw_splits

SPLITS = ("test", "dev", "train", "validation")


def load_run(
    folder: str | os.PathLike, model_name: str | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase | Preprocessing, RunConfig]:
    """The base model of a finished run with what the run trained, in evaluation mode, its tokenizer and settings.

    For a task of images, CLIP's image encoder with the task's head, and its preprocessing instead of a tokenizer.

    Args:
        folder: of the run.
        model_name: where its base model is by now, if it was moved; the same weights in any place.

    Raises:
        RunError: there is no run in the folder, or it is not finished, or it diverged before its first epoch ended.
        ModelError, AdapterCorruptError, AdapterBaseError: its model or its adapter cannot be used.
    """
    folder = Path(folder)
    config = run_config(folder)
    if not (folder / "adapter.safetensors").exists():
        why = "diverged" if (folder / "result.json").exists() else f"not finished: rmbook train --resume {folder}"
        raise RunError(f"the run in {folder} has no adapter.safetensors: it is {why}.")
    load, dtype = find_task(config.task).load_model, getattr(torch, config.dtype)
    model, tokenizer = load(model_name or config.model, dtype=dtype, revision=None if model_name else config.revision)
    load_trained(model, folder / "adapter.safetensors")
    return model.eval(), tokenizer, config


def evaluate_run(
    run: str | None,
    model_name: str | None,
    split: str = "test",
    changes: dict | None = None,
    dtype: str | None = None,
    predictions: str | None = None,
    progress: bool = True,
) -> dict:
    """The metric of a run, or of a model as it is, over examples of a task.

    Args:
        run: folder of a finished run; None for a model as it is.
        model_name: a model as it is, for which `changes` must name a task; beside a run, where its base model is now.
        split: "test", "dev" or "train" as the run draws them, or "validation": all of the task's validation split.
        changes: of task, data_dir, test_size, seed and max_length; a run has its own. If its examples were moved,
            data_dir must hold the same ones.
        dtype: for a model as it is; float32 if None.
        predictions: file for the answers.
        progress: show a bar on standard error.

    Raises:
        ConfigError: what came is not enough, or too much.
        Also what `load_run` and the methods of `rmbook.tasks.task.Task` raise.
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
    task, examples = find_task(config.task), _examples(config, split)
    longest = task.prompt_limit(model, config.max_length)
    with tqdm(total=len(examples), unit="example", leave=False, disable=not progress) as bar:
        answers = task.predict(model, tokenizer, examples, longest, bar.update)
    if predictions is not None:
        _write_predictions(Path(predictions), examples, answers)
    return {"task": config.task, "split": split, "records": len(examples)} | task.score(examples, answers)


def continue_text(run: str | None, model_name: str | None, text: str, max_new_tokens: int, dtype: str | None) -> str:
    """Return what a run's model, or a model as it is, writes after `text`, up to the end of the line.

    Raises:
        ConfigError: the text is empty, or too long for the model.
    """
    model, tokenizer, config = _load(run, model_name, {"task": "SQuAD"} if run is None else {}, dtype)
    if not find_task(config.task).has_prompts:
        raise ConfigError(f"the run in {run} is of {config.task}, images: its model writes no text.")
    start = start_token(tokenizer, model.config.model_type)
    ids = ([] if start is None else [start]) + tokenizer.encode(text, add_special_tokens=False)
    if not text:
        raise ConfigError("the prompt is empty: give the text that the model is to continue.")
    check_tokens([Encoding(ids, 0)], model.get_input_embeddings().num_embeddings)
    limit = max_positions(model)
    if limit and len(ids) + max_new_tokens > limit:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, and with {max_new_tokens} new ones that is more than the {limit} that "
            "the model can take: shorten it, or lower --max-new-tokens."
        )
    return generate_answers(model, tokenizer, [Encoding(ids, 0)], max_new_tokens=max_new_tokens)[0]


def _check_source(run: str | None, model_name: str | None) -> None:
    if run is None and model_name is None:
        raise ConfigError("give the folder of a run, or --model.")


def _load(
    run: str | None, model_name: str | None, changes: dict, dtype: str | None
) -> tuple[nn.Module, Any, RunConfig]:
    _check_source(run, model_name)
    if run is not None and dtype is not None:
        raise ConfigError("a run has its own dtype: leave out --dtype.")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: {closest(dtype, DTYPES)}")
    model_name = model_name and resolve(model_name)
    if changes.get("data_dir"):
        changes = changes | {"data_dir": resolve(changes["data_dir"])}
    if run is not None:
        config = run_config(Path(run))
        changed = dataclasses.replace(config, **changes)
        if "data_dir" in changes and changed.task == config.task:
            found = {"data": data_fingerprint(changed.task, changed.data_dir)}
            check_inputs(Path(run), found, changed.data_dir, model_name)
        if model_name is not None:
            found = {"weights": weights_fingerprint(model_name, None)[0]}
            check_inputs(Path(run), found, changed.data_dir, model_name)
        model, tokenizer, config = load_run(run, model_name)
        if find_task(changed.task).load_model != find_task(config.task).load_model:  # a head of classes is one task's
            raise ConfigError(f"the run in {run} is of {config.task} and cannot do {changed.task}: leave out --task.")
        return model, tokenizer, changed
    assert model_name is not None  # by _check_source
    # The method plays no part: a configuration must have one.
    config = RunConfig(model=model_name, learning_rate=1.0, method="full", dtype=dtype or "float32", **changes)
    return *find_task(config.task).load_model(model_name, dtype=getattr(torch, config.dtype)), config


def _examples(config: RunConfig, split: str) -> Sequence:
    task = find_task(config.task)
    if split == "validation":
        return task.load_examples("validation", config.data_dir)
    sizes = config.train_size, config.dev_size, config.test_size
    return getattr(draw_splits(task, config.data_dir, config.seed, *sizes), split)


def _write_predictions(path: Path, examples: Sequence, answers: Sequence) -> None:
    rows = (
        {"answer": answer, "right": list(example.answers or example.gold)}
        for example, answer in zip(examples, answers, strict=True)
    )
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
