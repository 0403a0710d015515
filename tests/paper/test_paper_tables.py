"""The paper's tables: as they were read from the paper, complete, with averages that follow from their rows."""

import inspect
import math

import pandas as pd
import pytest

from rmbook.methods.apply import METHODS
from rmbook.paper.statistics import possible_mean
from rmbook.paper.tables import TABLES, TEST_RECORDS, load_paper_table, load_score_rows
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.language import LANGUAGE_TASKS
from rmbook.tasks.splits import sample_splits

IMAGES = {"CIFAR10", "GTSRB", "MNIST", "SVHN", "RESISC45"}


@pytest.mark.parametrize("number", TABLES)
def test_a_table_is_the_one_read_from_the_paper(number, shared):
    read = pd.read_csv(shared / "paper" / "tables" / f"table{number}.csv")
    if number == 9:  # its column says "Masking" once for nine rows; the reader took one row of them for random masking
        read["method"] = "structured_masking"
    pd.testing.assert_frame_equal(load_paper_table(number), read)


@pytest.mark.parametrize("number", TABLES)
def test_names_are_those_of_the_package(number):
    table = load_paper_table(number)
    assert set(table["task"]) <= (IMAGES if number == 2 else set(LANGUAGE_TASKS) | {"Avg"})
    assert set(table["method"]) <= set(METHODS)
    assert not table.duplicated(["model", "method", "ratio", "task"]).any()
    assert table["ratio"].dropna().between(1e-6, 1).all()
    for column, low, high in (("score", 0, 100), ("learning_rate", 1e-6, 0.1)):
        if column in table:
            assert table[column].between(low, high).all()
    assert f"table {number}" in table.attrs["source"]


@pytest.mark.parametrize("number", [1, 5, 8])
def test_the_averages_follow_from_the_eleven_tasks(number):
    for _, row in load_paper_table(number).groupby(["model", "method", "ratio"]):
        scores = row.set_index("task")["score"]
        assert set(scores.index) == set(LANGUAGE_TASKS) | {"Avg"}
        assert math.isclose(scores[list(LANGUAGE_TASKS)].mean(), scores["Avg"], abs_tol=0.03)  # printed with two digits


def test_tables_5_to_7_speak_of_the_same_runs():
    keys = ["model", "method", "ratio", "task"]
    scores = load_paper_table(5).query("task != 'Avg'")[keys]
    rates = pd.concat([load_paper_table(6), load_paper_table(7)])[keys]
    assert set(map(tuple, scores.values)) == set(map(tuple, rates.values))


def test_tables_8_and_9_speak_of_the_same_runs():
    keys = ["model", "method", "ratio", "task"]
    scores, rates = load_paper_table(8).query("task != 'Avg'")[keys], load_paper_table(9)[keys]
    assert set(map(tuple, scores.values)) == set(map(tuple, rates.values)) and len(scores) == len(rates) == 3 * 9 * 11


def test_table_1_is_part_of_table_5():
    keys = ["model", "method", "ratio", "task"]
    both = load_paper_table(1).merge(load_paper_table(5), on=keys, how="left")
    assert len(both) == 180 and (both["score_x"] == both["score_y"]).all()


def test_tables_2_and_3_are_complete():
    for number, rows, tasks in ((2, 5, IMAGES), (3, 14, {"SST-2", "MultiRC"})):
        groups = load_paper_table(number).groupby("task")
        assert set(groups.groups) == tasks and (groups.size() == rows).all()


def test_test_sizes_are_those_of_the_printed_numbers():
    """Every accuracy is k of 3 n, where the smallest sets leave most printed numbers out."""
    scores = load_score_rows()
    assert set(scores.columns) == set(TEST_RECORDS) == set(LANGUAGE_TASKS) and scores.shape == (3 * 24, 11)
    for task in ("CB", "WSC", "COPA", "RTE", "WiC", "SST-2"):
        assert possible_mean(scores[task], TEST_RECORDS[task], runs=3).all()
    assert max(TEST_RECORDS.values()) == inspect.signature(sample_splits).parameters["test_size"].default


@pytest.mark.parametrize(("task", "folder"), [("CB", "cb"), ("COPA", "copa"), ("RTE", "rte"), ("SST-2", "sst2")])
def test_test_sizes_are_those_of_the_validation_splits(task, folder, shared):
    assert len(load_examples(task, "validation", shared / "data" / folder)) == TEST_RECORDS[task]


def test_score_rows_are_the_tables_own_numbers():
    scores = load_score_rows()
    assert not scores.index.duplicated().any() and not scores.isna().any(axis=None)
    rows = (5, "lora", 0.0012, "LoRA"), (5, "random_masking", 1e-5, "mask 0.001%"), \
           (8, "structured_masking", 5e-5, "structured 0.005%")  # fmt: skip
    for number, *keys, name in rows:
        printed = load_paper_table(number).set_index(["model", "method", "ratio", "task"])["score"].to_dict()
        wanted = {task: printed[("OPT-1.3b", *keys, task)] for task in LANGUAGE_TASKS}
        assert scores.loc[("OPT-1.3b", name)].to_dict() == wanted


def test_another_number_is_refused():
    with pytest.raises(ValueError, match="number must be one of 1, 2, .*, 9, got 10"):
        load_paper_table(10)
