"""The sampling rule against numpy's own global generator, which it leaves alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook.errors import TaskError
from rmbook.tasks.examples import Example
from rmbook.tasks.language import LANGUAGE_TASKS
from rmbook.tasks.splits import sample_splits


def made(count, task="RTE"):
    return [Example(task, {"premise": str(number), "hypothesis": ""}, gold=(0,)) for number in range(count)]


def reference(train, validation, seed, train_size, dev_size, test_size):
    np.random.seed(seed)
    chosen = [train[i] for i in np.random.permutation(len(train)).tolist()[: train_size + dev_size]]
    np.random.seed(seed)
    test = [validation[i] for i in np.random.permutation(len(validation)).tolist()[:test_size]]
    return chosen[:-dev_size], chosen[-dev_size:], test


@given(
    st.integers(2, 400),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 100),
    st.data(),
)
def test_the_splits_are_those_of_the_papers_runs(train, validation, seed, train_size, dev_size, data):
    dev_size = min(dev_size, train - 1)
    test_size = data.draw(st.integers(1, 300))
    lists = made(train), made(validation)
    expected = reference(*lists, seed, train_size, dev_size, test_size)
    np.random.seed(5)
    before = np.random.get_state()
    splits = sample_splits(*lists, seed, train_size, dev_size, test_size)
    after = np.random.get_state()
    assert (splits.train, splits.dev, splits.test) == expected
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@settings(deadline=None)  # others may load the machine
@given(st.integers(0, 2**32 - 1))
def test_dev_and_train_share_no_example_and_none_is_taken_twice(seed):
    splits = sample_splits(made(1700), made(1200), seed)
    numbers = [int(example.texts["premise"]) for example in splits.train + splits.dev]
    assert len(set(numbers)) == len(numbers) == 1500 and len(splits.dev) == 500 and len(splits.test) == 1000


@pytest.mark.parametrize(
    ("task", "training", "train", "dev"), [("CB", 250, 200, 50), ("WSC", 554, 504, 50), ("COPA", 400, 300, 100)]
)
def test_small_tasks_use_all_they_have(task, training, train, dev):
    splits = sample_splits(made(training, task), made(56, task), seed=0)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (train, dev, 56)


def test_dev_sizes_are_the_papers():
    assert {name: task.dev_size for name, task in LANGUAGE_TASKS.items() if task.dev_size != 500} == {
        **{"CB": 50, "WSC": 50},
        "COPA": 100,  # MeZO's: 500 would leave none of its 400
    }


def test_no_dev_at_all_is_possible():
    splits = sample_splits(made(20), made(3), 0, train_size=7, dev_size=0)
    assert len(splits.train) == 7 and splits.dev == []


@pytest.mark.parametrize(
    ("train", "validation", "options", "message"),
    [
        (0, 3, {}, "the train split is empty"),
        (3, 0, {}, "the validation split is empty"),
        (400, 3, {}, "400 training examples leave none after a dev_size of 500: give a smaller dev_size"),
        (50, 3, {"dev_size": -1}, "dev_size must be at least 0, got -1"),
        (50, 3, {"train_size": 0, "dev_size": 5}, "train_size must be at least 1, got 0"),
        (50, 3, {"test_size": 0, "dev_size": 5}, "test_size must be at least 1, got 0"),
        (50, 3, {"seed": -1, "dev_size": 5}, "seed must be 0 to 4294967295, got -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(train, validation, options, message):
    with pytest.raises(TaskError, match=message):
        sample_splits(made(train), made(validation), **{"seed": 0} | options)
