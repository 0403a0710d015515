"""The paper's sampling rule: 1,000 examples to train on, 500 to choose the epoch by, 1,000 to test on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rmbook.errors import TaskError
from rmbook.tasks.catalog import find_task
from rmbook.tasks.task import SPLITS, Task


@dataclass(frozen=True)
class Splits:
    """The examples of one run; `train` and `dev` come from the training split, `test` from the validation split."""

    train: list
    dev: list
    test: list


def sample_splits(
    train: list,
    validation: list,
    seed: int,
    train_size: int = 1000,
    dev_size: int | None = None,
    test_size: int = 1000,
) -> Splits:
    """Draw the examples of a run as MeZO does.

    The first train_size + dev_size numbers of one permutation of the training split are taken; the last dev_size of
    them are dev. A training split that is smaller than that gives all its examples, and dev is still the last of them:
    the 250 of CB become 200 + 50. Test takes the first numbers of the validation split's own permutation.

    Args:
        train, validation: all examples of the two splits.
        seed: 0 to 2**32 - 1; the streams are those of `numpy.random.seed(seed)`, whose global state is left alone.
        dev_size: the task's own by default (500; 50 for CB and WSC; 100 for COPA).

    Raises:
        TaskError: an empty split, a size below its least (1 for train and test, 0 for dev), a seed out of range, or
            nothing left to train on.
    """
    if not train or not validation:
        raise TaskError(f"the {'train' if not train else 'validation'} split is empty: load its examples first.")
    dev_size = find_task(train[0].task).dev_size if dev_size is None else dev_size
    for name, size, least in (("train", train_size, 1), ("dev", dev_size, 0), ("test", test_size, 1)):
        if size < least:
            raise TaskError(f"{name}_size must be at least {least}, got {size}.")
    if not 0 <= seed < 2**32:
        raise TaskError(f"seed must be 0 to 4294967295, got {seed}.")
    chosen = _first(train, train_size + dev_size, seed)
    boundary = len(chosen) - dev_size
    if boundary < 1:
        raise TaskError(
            f"{len(train)} training examples leave none after a dev_size of {dev_size}: give a smaller dev_size."
        )
    return Splits(chosen[:boundary], chosen[boundary:], _first(validation, test_size, seed))


def draw_splits(task: Task, data_dir: str | None, seed: int, *sizes: Any) -> Splits:
    """Load all examples of a task and draw those of a run; seed and sizes are as for `sample_splits`."""
    train, validation = (task.load_examples(split, data_dir) for split in SPLITS)
    return sample_splits(train, validation, seed, *sizes)


def _first(examples: list, count: int, seed: int) -> list:
    order = np.random.RandomState(seed).permutation(len(examples))
    return [examples[number] for number in order[:count]]
