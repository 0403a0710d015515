"""The paper's tables: as they were read from the paper, complete, with averages that follow from their rows."""

import math

import pandas as pd
import pytest

from rmbook.methods import METHODS
from rmbook.paper_tables import TABLES, load_paper_table
from rmbook.tasks import TASKS


@pytest.mark.parametrize("number", TABLES)
def test_a_table_is_the_one_read_from_the_paper(number, shared):
    pd.testing.assert_frame_equal(
        load_paper_table(number), pd.read_csv(shared / "paper" / "tables" / f"table{number}.csv")
    )


@pytest.mark.parametrize("number", TABLES)
def test_names_are_those_of_the_package(number):
    table = load_paper_table(number)
    assert set(table["task"]) <= set(TASKS) | {"Avg"} and set(table["method"]) <= set(METHODS)
    assert not table.duplicated(["model", "method", "ratio", "task"]).any()
    assert table["ratio"].dropna().between(1e-6, 1).all()
    for column, low, high in (("score", 0, 100), ("learning_rate", 1e-6, 0.1)):
        if column in table:
            assert table[column].between(low, high).all()
    assert f"table {number}" in table.attrs["source"]


def test_the_averages_follow_from_the_eleven_tasks():
    for _, row in load_paper_table(5).groupby(["model", "method", "ratio"]):
        scores = row.set_index("task")["score"]
        assert set(scores.index) == set(TASKS) | {"Avg"}
        assert math.isclose(scores[list(TASKS)].mean(), scores["Avg"], abs_tol=0.03)  # printed with two digits


def test_tables_5_to_7_speak_of_the_same_runs():
    keys = ["model", "method", "ratio", "task"]
    scores = load_paper_table(5).query("task != 'Avg'")[keys]
    rates = pd.concat([load_paper_table(6), load_paper_table(7)])[keys]
    assert set(map(tuple, scores.values)) == set(map(tuple, rates.values))


def test_another_number_is_refused():
    with pytest.raises(ValueError, match="number must be one of 4, 5, 6, 7, got 1"):
        load_paper_table(1)
