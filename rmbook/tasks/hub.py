"""Rows of the tasks from the Hugging Face hub: parquet files at a pinned commit, read by the package `datasets`."""

from rmbook.errors import TaskError, first_line
from rmbook.tasks.task import SPLITS, Task


def hub_rows(task: Task, split: str) -> tuple[str, list[dict]]:
    """The rows of one split, "train" or "validation"; downloaded the first time, then from the cache of `datasets`.

    Returns:
        source: repository, configuration and split, for messages.
        rows: one dict a row.

    Raises:
        TaskError: as `hub_table`.
    """
    if split not in SPLITS:
        raise TaskError(f"split must be train or validation, got {split!r}.")
    source, table = hub_table(task, split, f"original files ({' and '.join(task.files.values())})")
    return source, list(table)


def hub_table(task: Task, split: str, files: str):
    """The `datasets.Dataset` of one split with the task's columns.

    Args:
        task: which task.
        split: as the hub calls it.
        files: what a folder would have to hold instead, for messages.

    Returns:
        source: repository, configuration and split, for messages.
        table: its rows are read when they are asked for.

    Raises:
        TaskError: `datasets` is not installed; the hub is out of reach and its cache has no copy; columns are missing.
    """
    instead = f"or give data_dir (--data-dir), a folder with {task.name}'s {files}"
    try:
        import datasets
    except ImportError:
        raise TaskError(f"the hub's {task.name} needs the package datasets: pip install datasets, {instead}.") from None
    name = f"{task.repository} ({task.configuration})" if task.configuration else task.repository
    try:
        table = datasets.load_dataset(task.repository, task.configuration, revision=task.revision, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(
            f"cannot load {name} from the hub ({first_line(error, 200)}): connect once to fill the cache, {instead}."
        ) from None
    missing = [column for column in task.columns if column not in table.column_names]
    if missing:
        raise TaskError(
            f"{name} has no column {', '.join(missing)}, only {', '.join(table.column_names)}: "
            f"{task.name} needs {', '.join(task.columns)}."
        )
    return f"{name}, {split}", table.select_columns(list(task.columns))
