"""Examples of the tasks of language in one form, whether they come from original files or from the hub."""

from dataclasses import dataclass

from rmbook.errors import TaskError
from rmbook.tasks.task import Task


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        task: name of the task.
        texts: what the prompt is made of, by the hub's column names.
        choices: the options where each example has its own: COPA's 2, ReCoRD's entities in sorted order; else empty.
        gold: which options are right, by number: one of them, or for ReCoRD one or more. Empty for SQuAD and DROP.
        answers: right answers of SQuAD and DROP; empty for the other tasks.
    """

    task: str
    texts: dict[str, str]
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()


def to_example(task: Task, row: dict, where: str = "a row") -> Example:
    """The example in a row with the hub's columns.

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
        _check_characters(column, row[column])
    return {column: row[column] for column in columns}


def _strings(column: str, value) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TaskError(f"{column} must be a list of texts, got {value!r}.")
    for text in value:
        _check_characters(column, text)
    return tuple(value)


def _check_characters(column: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{column} holds half a character at place {error.start}: was the text cut?") from None


def _class(task: Task, label) -> int:
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(task.labels):
        raise TaskError(f"label {label!r} is out of range: {task.name} has 0 to {len(task.labels) - 1}.")
    return label


def _classification(task: Task, row: dict) -> Example:
    texts = _texts(row, *(column for column in task.columns if column != "label"))
    return Example(task.name, texts, gold=(_class(task, row["label"]),))


def _boolq(task: Task, row: dict) -> Example:
    if not isinstance(row["answer"], bool):
        raise TaskError(f"answer must be true or false, got {row['answer']!r}.")
    texts = _texts(row, "question", "passage")
    if not texts["question"]:
        raise TaskError("question is empty.")
    return Example(task.name, texts, gold=(0 if row["answer"] else 1,))  # the options are Yes, No


def _copa(task: Task, row: dict) -> Example:
    texts = _texts(row, "premise", "question", "choice1", "choice2")
    if texts["question"] not in ("cause", "effect"):
        raise TaskError(f"question must be cause or effect, got {texts['question']!r}.")
    choices = (texts.pop("choice1"), texts.pop("choice2"))
    return Example(task.name, texts, choices, gold=(_class(task, row["label"]),))


def _record(task: Task, row: dict) -> Example:
    choices = tuple(sorted(set(_strings("entities", row["entities"]))))
    answers = sorted(set(_strings("answers", row["answers"])))
    unknown = [answer for answer in answers if answer not in choices]
    if unknown or not answers:
        raise TaskError(f"answers {answers} must be among the entities {list(choices)}, and at least one.")
    return Example(task.name, _texts(row, "passage", "query"), choices, tuple(map(choices.index, answers)))


def _reading(task: Task, row: dict) -> Example:
    texts, (column, key) = task.columns[:-1], (task.columns[-1], "text" if task.name == "SQuAD" else "spans")
    if not isinstance(row[column], dict) or key not in row[column]:
        raise TaskError(f"{column} must hold {key}, got {row[column]!r}.")
    answers = _strings(f"{column}.{key}", row[column][key])
    if not answers:
        raise TaskError(f"{column}.{key} is empty: an example needs an answer.")
    found = _texts(row, *texts)
    # Some of SQuAD's questions have spaces at their ends, which the hub's older conversions removed; prompts do too.
    return Example(task.name, found | {"question": found["question"].strip()}, answers=answers)


_MAKERS = {"BoolQ": _boolq, "COPA": _copa, "ReCoRD": _record, "SQuAD": _reading, "DROP": _reading}
