"""peft's comparison of methods: the table is the published one, and what is computed from it is what it says."""

import csv

import numpy as np
import pytest
from scipy import stats

from rmbook.paper.peft_comparison import (
    BASE,
    FOLDER,
    QUESTIONS,
    SPARSE,
    compare_with,
    load_earlier_runs,
    load_peft_comparison,
    sparse_rates,
)
from rmbook.training.learning_rate import PAPER_CONSTANT

MASK = "shira--lr_0.0003-random_seed_42"


def test_the_tables_are_whole(shared):
    assert (FOLDER / "metamathqa.csv").read_bytes() == (
        shared / "data/peft_method_comparison/metamathqa.csv"
    ).read_bytes()


def test_every_accuracy_is_a_number_of_questions_and_no_run_is_its_own_repetition():
    now, earlier = load_peft_comparison(), load_earlier_runs()
    right = np.concatenate([now["score"], earlier["score"]]) * QUESTIONS / 100
    np.testing.assert_allclose(right, right.round(), atol=1e-6)
    assert set(earlier["run"]) <= set(now.index) and not earlier.duplicated(["run", "campaign"]).any()
    today = {(run, created) for run, created in now["created"].items()}
    with open(FOLDER / "metamathqa_earlier.csv", newline="") as file:
        rows = [(row["run"].replace("llama-3.2-3B-", ""), row["created"]) for row in csv.DictReader(file)]
    assert not today & set(rows)


def test_the_law_is_applied_to_the_rate_that_the_weights_see():
    found = sparse_rates(load_peft_comparison())
    assert list(found.index) == list(SPARSE)
    np.testing.assert_allclose(found["law"] * found["ratio"], PAPER_CONSTANT)
    np.testing.assert_allclose(found.loc[MASK, "ratio"], 32 * 28 * (6144 + 4096) / BASE)
    # peft's inverse transform of one coefficient has the length 1 / sqrt(entries), whatever the coefficient.
    spectrum = np.zeros((12, 8))
    spectrum[3, 5] = 1.0
    assert np.linalg.norm(np.fft.ifft2(spectrum)) == pytest.approx((12 * 8) ** -0.5)
    expected = 1e-4 * 300 / np.sqrt(np.sqrt(3072 * 3072 * 1024 * 3072))  # geometric mean of the two shapes
    assert found.loc["fourierft--default", "used"] == pytest.approx(expected)


def test_comparisons_are_fishers_and_corrected_for_all_of_them():
    runs = load_peft_comparison()
    family = compare_with(runs, MASK)
    assert len(family) == len(runs) - 1 and MASK not in family.index
    right = {name: round(score * QUESTIONS / 100) for name, score in runs["score"].items()}
    table = [[right[name], QUESTIONS - right[name]] for name in (MASK, "lora--rank32")]
    assert family.loc["lora--rank32", "p"] == pytest.approx(stats.fisher_exact(table).pvalue)
    assert (family["holm"] >= family["p"]).all()
    rising = family.sort_values("p")
    passed = rising["p"] <= 0.05 / np.arange(len(rising), 0, -1)  # Holm: until the first that does not
    assert ((rising["holm"] <= 0.05) == passed.cummin()).all() and 0 < passed.sum() < len(rising)
