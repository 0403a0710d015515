"""The form that all of the paper's sixteen tasks share: examples, a model, an objective, answers and their score.

A task says what it is without torch: that is loaded by the methods which need a model, so that a mistake in a command
is answered at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rmbook.errors import TaskError
from rmbook.files import digest_files
from rmbook.yaml_files import read_yaml

if TYPE_CHECKING:
    from torch import nn

    from rmbook.training.objectives import Objective

SPLITS = ("train", "validation")  # of the original data; a run tests on the second


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task; `rmbook.tasks.language.LanguageTask` and `rmbook.tasks.images.ImageTask` fill in the methods.

    Below, `preparation` is what `load_model` gives beside the model: its tokenizer, or for images its preprocessing.

    Attributes:
        name: as the paper writes it.
        repository, configuration, revision: parquet files on the Hugging Face hub, and the commit that is read.
        columns: the hub's columns that are read.
        dev_size: examples cut from the training split to choose the best epoch.
        metric: what the paper reports, "accuracy" or "f1".
        has_prompts: whether a model reads text, so that its length has a limit.
        trains_answer: whether the right answer alone is trained, so that dev examples have a loss but no accuracy.
    """

    name: str
    repository: str
    revision: str
    columns: tuple[str, ...]
    configuration: str | None = None
    dev_size: int = 500
    metric: str = "accuracy"
    has_prompts: bool = True
    trains_answer: bool = False

    def load_examples(self, split: str, data_dir: str | os.PathLike | None = None) -> list:
        """All examples of a split, in the order of the original data.

        Args:
            split: "train" or "validation".
            data_dir: folder with the original files, or with a folder of the task's that holds them; None reads the
                hub.

        Raises:
            TaskError: files that are missing, damaged or of another form, unknown labels, an empty split, no hub.
        """
        raise NotImplementedError

    def original_files(self, data_dir: str | os.PathLike) -> dict[str, Path]:
        """All files that `load_examples` reads of both splits, by a name that does not depend on the folder.

        Raises:
            TaskError: a file is missing.
        """
        raise NotImplementedError

    def fingerprint(self, data_dir: str | os.PathLike | None) -> str:
        """Return the fingerprint of the examples: a hash of the original files, or the hub's repository and commit.

        Raises:
            TaskError: a file is missing.
        """
        if data_dir is None:
            return f"{self.repository}/{self.configuration or ''}@{self.revision}"
        return digest_files(self.original_files(data_dir))

    def load_model(self, name: str | os.PathLike, **settings: Any) -> tuple[nn.Module, Any]:
        """The model that the task wants, and its preparation; tasks that can share a model have the same function here.

        Args:
            name: of the model on the hub, or a folder.
            settings: dtype of its parameters, torch.float32 if not given; device, the CPU if not given or None;
                revision, a branch, tag or commit on the hub.

        Raises:
            ModelError: no such model, or not of the kind that the task wants.
        """
        raise NotImplementedError

    def prompt_limit(self, model: nn.Module, wanted: int | None = None) -> int | None:
        """The longest prompt in tokens for `encode` and `predict`; None for tasks without prompts.

        Args:
            model: says how much it can take.
            wanted: what the user asks for, if anything.

        Raises:
            ConfigError: the user asks for more than the model can take.
        """
        raise NotImplementedError

    def encode(self, examples: Sequence, model: nn.Module, preparation: Any, max_length: int | None = None) -> list:
        """The examples as `objective` takes them.

        Args:
            max_length: from `prompt_limit`, which is asked if it is None.

        Raises:
            TaskError: a prompt that leaves no room, or adds no token.
        """
        raise NotImplementedError

    def objective(self, preparation: Any) -> Objective:
        """Return what training minimises."""
        raise NotImplementedError

    def predict(
        self,
        model: nn.Module,
        preparation: Any,
        examples: Sequence,
        max_length: int | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[int] | list[str]:
        """Return what the model answers, for `score`.

        Args:
            max_length: from `prompt_limit`, which is asked if it is None; answers that are written must fit, too.
            advance: called with the number of examples as they are done.

        Returns:
            For each example the number of the option or class that the model finds likeliest; for SQuAD and DROP the
            text that it writes.

        Raises:
            TaskError: as `encode`; an image is damaged.
        """
        raise NotImplementedError

    def score(self, examples: Sequence, predictions: Sequence[int] | Sequence[str]) -> dict[str, float]:
        """The task's metric over all examples, by its name: {"accuracy": ...} or {"f1": ...}, from 0 to 1.

        Raises:
            TaskError: no examples, examples of another task, or another number of predictions.
        """
        if not examples or len(examples) != len(predictions):
            counts = f"{len(predictions)} for {len(examples)} examples"
            raise TaskError(f"a score needs one prediction for each example, got {counts}.")
        if others := sorted({example.task for example in examples} - {self.name}):
            raise TaskError(f"{self.name} cannot score examples of {', '.join(others)}.")
        scores = [self._score_one(example, answer) for example, answer in zip(examples, predictions, strict=True)]
        return {self.metric: sum(scores) / len(scores)}

    def _score_one(self, example: Any, prediction: Any) -> float:
        return float(prediction in example.gold)


Kind = TypeVar("Kind", bound=Task)


def read_tasks(kind: type[Kind], path: Path) -> dict[str, Kind]:
    """Read the tasks of one kind, by name, from a YAML file whose entries are the kind's attributes."""
    rows = {name: _with_tuples(row) for name, row in read_yaml(path).items()}
    return {name: kind(name=name, **row) for name, row in rows.items()}


def _with_tuples(row: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def plain_name(name: object) -> str:
    """A name without capitals, spaces and signs, for comparing it with what people write."""
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())
