"""All sixteen tasks by name, as the paper writes them or as people do."""

import os

from rmbook.errors import TaskError, closest
from rmbook.tasks.images import IMAGE_TASKS
from rmbook.tasks.language import LANGUAGE_TASKS
from rmbook.tasks.task import Task, plain_name

TASKS: dict[str, Task] = {**LANGUAGE_TASKS, **IMAGE_TASKS}
_PLAIN = {plain_name(name): task for name, task in TASKS.items()}


def find_task(name: str) -> Task:
    """The task of a name; capitals, hyphens, spaces and underscores do not matter.

    Raises:
        TaskError: no such task; the message names the closest ones.
    """
    if plain_name(name) not in _PLAIN:
        raise TaskError(f"unknown task {name!r}: {closest(name, TASKS)}")
    return _PLAIN[plain_name(name)]


def load_examples(name: str, split: str, data_dir: str | os.PathLike | None = None) -> list:
    """All examples of a split of the task of a name; see `rmbook.tasks.task.Task.load_examples`.

    Raises:
        TaskError: unknown task; also what that raises.
    """
    return find_task(name).load_examples(split, data_dir)
