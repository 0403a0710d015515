"""Records of the tasks in one form, whether they come from original files or from the hub."""

import os
from dataclasses import dataclass

from rmbook.tasks.hub import hub_rows
from rmbook.tasks.image_files import ImageRecord, load_images
from rmbook.tasks.image_task import ImageTask
from rmbook.tasks.original_files import read_rows
from rmbook.tasks.task import Task, TaskError, find_task


@dataclass(frozen=True)
class Record:
    """One question of a task.

    Attributes:
        task: name of the task.
        texts: what the prompt is made of, by the hub's column names.
        choices: the options where each record has its own: COPA's 2, ReCoRD's entities in sorted order; else empty.
        gold: which options are right, by number: one of them, or for ReCoRD one or more. Empty for SQuAD and DROP.
        answers: right answers of SQuAD and DROP; empty for the other tasks.
    """

    task: str
    texts: dict[str, str]
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()


def load_records(name: str, split: str, data_dir: str | os.PathLike | None = None) -> list[Record] | list[ImageRecord]:
    """All records of a split, in the order of the original file; of a set of images, see `load_images`.

    Args:
        name: of the task.
        split: "train" or "validation".
        data_dir: folder with the task's original files; None reads from the hub.

    Raises:
        TaskError: unknown task, files that are missing or of another form, an empty split, labels out of range, no hub.
    """
    task = find_task(name)
    if isinstance(task, ImageTask):
        return load_images(task, split, data_dir)
    source, rows = hub_rows(task, split) if data_dir is None else read_rows(task, split, data_dir)
    if not rows:
        raise TaskError(f"{source} holds no records: get {task.name}'s {split} split again.")
    return [to_record(task, row, f"{source}, record {number}") for number, row in enumerate(rows, 1)]


def to_record(task: Task, row: dict, where: str = "a row") -> Record:
    """The record of a row with the hub's columns.

    Raises:
        TaskError: a missing column, a text that is no text, a label out of range; the message starts with `where`.
    """
    missing = [column for column in task.columns if column not in row]
    if missing:
        raise TaskError(f"{where}: no column {', '.join(missing)}; {task.name} needs {', '.join(task.columns)}.")
    try:
        return _MAKERS.get(task.name, _classification)(task, row)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from None


def _texts(row: dict, *columns: str) -> dict[str, str]:
    for column in columns:
        if not isinstance(row[column], str):
            raise TaskError(f"{column} must be text, got {row[column]!r}.")
    return {column: row[column] for column in columns}


def _strings(column: str, value) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TaskError(f"{column} must be a list of texts, got {value!r}.")
    return tuple(value)


def _class(task: Task, label) -> int:
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(task.labels):
        raise TaskError(f"label {label!r} is out of range: {task.name} has 0 to {len(task.labels) - 1}.")
    return label


def _classification(task: Task, row: dict) -> Record:
    texts = _texts(row, *(column for column in task.columns if column != "label"))
    return Record(task.name, texts, gold=(_class(task, row["label"]),))


def _boolq(task: Task, row: dict) -> Record:
    if not isinstance(row["answer"], bool):
        raise TaskError(f"answer must be true or false, got {row['answer']!r}.")
    texts = _texts(row, "question", "passage")
    if not texts["question"]:
        raise TaskError("question is empty.")
    return Record(task.name, texts, gold=(0 if row["answer"] else 1,))  # the options are Yes, No


def _copa(task: Task, row: dict) -> Record:
    texts = _texts(row, "premise", "question", "choice1", "choice2")
    if texts["question"] not in ("cause", "effect"):
        raise TaskError(f"question must be cause or effect, got {texts['question']!r}.")
    choices = (texts.pop("choice1"), texts.pop("choice2"))
    return Record(task.name, texts, choices, gold=(_class(task, row["label"]),))


def _record(task: Task, row: dict) -> Record:
    choices = tuple(sorted(set(_strings("entities", row["entities"]))))
    answers = sorted(set(_strings("answers", row["answers"])))
    unknown = [answer for answer in answers if answer not in choices]
    if unknown or not answers:
        raise TaskError(f"answers {answers} must be among the entities {list(choices)}, and at least one.")
    return Record(task.name, _texts(row, "passage", "query"), choices, tuple(map(choices.index, answers)))


def _reading(task: Task, row: dict) -> Record:
    texts, (column, key) = task.columns[:-1], (task.columns[-1], "text" if task.name == "SQuAD" else "spans")
    if not isinstance(row[column], dict) or key not in row[column]:
        raise TaskError(f"{column} must hold {key}, got {row[column]!r}.")
    answers = _strings(f"{column}.{key}", row[column][key])
    if not answers:
        raise TaskError(f"{column}.{key} is empty: a record needs an answer.")
    found = _texts(row, *texts)
    # Some of SQuAD's questions have spaces at their ends, which the hub's older conversions removed; prompts do too.
    return Record(task.name, found | {"question": found["question"].strip()}, answers=answers)


_MAKERS = {"BoolQ": _boolq, "COPA": _copa, "ReCoRD": _record, "SQuAD": _reading, "DROP": _reading}
