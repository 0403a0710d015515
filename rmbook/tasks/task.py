"""The paper's eleven tasks: where their records are, how they are trained and what is reported."""

import difflib
from dataclasses import dataclass, field

from rmbook.tasks.image_task import IMAGE_TASKS, ImageTask


class TaskError(ValueError):
    """A task, its records or its prompts cannot be used; one line that says what to do."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as the paper writes it.
        repository, configuration, revision: parquet files on the Hugging Face hub, and the commit that is read.
        folder: of the original distribution.
        files: name of the original file of each split, "train" and "validation".
        columns: the hub's columns that are read.
        labels: original labels in the order of the classes; empty where the original names the answer otherwise.
        objective: "options" trains a cross-entropy over the options, "answer" teacher forcing on the right one.
        metric: what the paper reports, "accuracy" or "f1".
        dev_size: records cut from the training split to choose the best epoch.
    """

    name: str
    repository: str
    revision: str
    columns: tuple[str, ...]
    folder: str
    configuration: str | None = None
    files: dict[str, str] = field(default_factory=lambda: {"train": "train.jsonl", "validation": "val.jsonl"})
    labels: tuple = ()
    objective: str = "options"
    metric: str = "accuracy"
    dev_size: int = 500

    @property
    def generates(self) -> bool:
        """Whether the model writes the answer, as in SQuAD and DROP; in the other tasks it chooses an option."""
        return self.metric == "f1"


def _superglue(name: str, configuration: str, columns: str, **kwargs) -> Task:
    return Task(
        name,
        repository="aps/super_glue",
        configuration=configuration,
        revision="3de24cf8022e94f4ee4b9d55a6f539891524d646",
        columns=tuple(columns.split()),
        folder=name,
        **kwargs,
    )


# COPA has 400 training records: with the 500 of the other tasks nothing would be left to train on, so the 100 of MeZO.
_TASKS = (
    Task(
        "SST-2",
        repository="nyu-mll/glue",
        configuration="sst2",
        revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        columns=("sentence", "label"),
        folder="SST-2",
        files={"train": "train.tsv", "validation": "dev.tsv"},
        labels=("0", "1"),
    ),
    _superglue("RTE", "rte", "premise hypothesis label", labels=("entailment", "not_entailment")),
    _superglue("CB", "cb", "premise hypothesis label", labels=("entailment", "contradiction", "neutral"), dev_size=50),
    Task(
        "BoolQ",
        repository="google/boolq",
        revision="35b264d03638db9f4ce671b711558bf7ff0f80d5",
        columns=("question", "passage", "answer"),
        folder="BoolQ",
        files={"train": "train.jsonl", "validation": "dev.jsonl"},
    ),
    _superglue("WSC", "wsc.fixed", "text span1_text span2_text label", labels=(False, True), dev_size=50),
    _superglue("WiC", "wic", "word sentence1 sentence2 label", labels=(False, True)),
    _superglue("MultiRC", "multirc", "paragraph question answer label", labels=(0, 1)),
    _superglue("COPA", "copa", "premise choice1 choice2 question label", labels=(0, 1), dev_size=100),
    _superglue("ReCoRD", "record", "passage query entities answers", objective="answer"),
    Task(
        "SQuAD",
        repository="rajpurkar/squad",
        revision="7b6d24c440a36b6815f21b70d25016731768db1f",
        columns=("title", "context", "question", "answers"),
        folder="SQuAD",
        files={"train": "train-v1.1.json", "validation": "dev-v1.1.json"},
        objective="answer",
        metric="f1",
    ),
    Task(
        "DROP",
        repository="ucinlp/drop",
        revision="95cda593fae71b60b5b19f82de3fcf3298c1239c",
        columns=("passage", "question", "answers_spans"),
        folder="drop_dataset",
        files={"train": "drop_dataset_train.json", "validation": "drop_dataset_dev.json"},
        objective="answer",
        metric="f1",
    ),
)
TASKS = {task.name: task for task in _TASKS}


def find_task(name: str) -> Task | ImageTask:
    """The task of a name, of language or of images; capitals, hyphens and underscores do not matter.

    Raises:
        TaskError: no such task; the message names the closest ones.
    """
    keys = {plain_name(known): task for known, task in (TASKS | IMAGE_TASKS).items()}
    if plain_name(name) in keys:
        return keys[plain_name(name)]
    close = [keys[key].name for key in difflib.get_close_matches(plain_name(name), keys)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise TaskError(f"unknown task {name!r}: {hint}The tasks are {', '.join(TASKS | IMAGE_TASKS)}.")


def plain_name(name: str) -> str:
    """A name without capitals, spaces and signs, for comparing it with what people write."""
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())
