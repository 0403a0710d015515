"""The comparison of fine-tuning methods that peft's developers publish: Llama-3.2-3B, MetaMathQA to GSM8K.

The figures are theirs (huggingface/peft, Apache-2.0, folder method_comparison/MetaMathQA at commit 5d602fd), as NOTICE
says, too. What is added here is what the law of learning rates says of the runs that train sparse sets of numbers.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rmbook.training.learning_rate import suggest_learning_rate

QUESTIONS = 1319  # of GSM8K's test set, answered by every run
BASE = 3_212_749_824  # parameters of Llama-3.2-3B
FOLDER = Path(str(files("rmbook_results"))) / "peft_method_comparison"
# Runs whose trained numbers are entries of the weights, or of their Fourier or wavelet transforms, by what a number is
# multiplied with before it is added to a weight. peft's inverse Fourier transform of a matrix divides by its number of
# entries, where the one that keeps lengths would divide by the root: here for matrices of 3072 x 3072 and 1024 x 3072.
SPARSE = {
    "shira--lr_0.0003-random_seed_42": 1.0,
    "trainable_tokens--sos+eos": 1.0,
    "ln_tuning--default": 1.0,
    "beft--target-v_proj": 1.0,
    "waveft--n_frequency-5000": 25.0,
    "fourierft--n_frequency-5000": 300 * (3072 * 3072 * 1024 * 3072) ** -0.25,
    "fourierft--default": 300 * (3072 * 3072 * 1024 * 3072) ** -0.25,
}


def load_peft_comparison() -> pd.DataFrame:
    """The 63 runs, one row each, named as in the repository without the model's name.

    Returns:
        The file's columns; `score`, accuracy on GSM8K in percent; `ratio`, trained numbers / parameters of the model.
        `.attrs["source"]` says where they come from.
    """
    table = pd.read_csv(FOLDER / "metamathqa.csv").rename(columns={"lr": "learning_rate"})
    table["run"] = table["run"].str.replace("llama-3.2-3B-", "", regex=False)
    table = table.assign(score=100 * table["test_accuracy"], ratio=table["trainable"] / BASE).set_index("run")
    table.attrs["source"] = "huggingface/peft, method_comparison/MetaMathQA, commit 5d602fd (21 August 2026)"
    return table


def load_earlier_runs() -> pd.DataFrame:
    """Runs with the same settings and the same seed that the repository's history holds: one row a run and day.

    Returns:
        run: as in `load_peft_comparison`.
        campaign: month of the run; "2025-06, two days later" for those that were repeated within that month.
        score: accuracy on GSM8K in percent.
    """
    table = pd.read_csv(FOLDER / "metamathqa_earlier.csv")
    table["run"] = table["run"].str.replace("llama-3.2-3B-", "", regex=False)
    month = table["created"].str[:7]
    again = (month == "2025-06") & (table["created"] >= "2025-06-19")
    return table.assign(campaign=month.mask(again, "2025-06, two days later"), score=100 * table["test_accuracy"])


def sparse_rates(table: pd.DataFrame) -> pd.DataFrame:
    """What the law of learning rates says of the runs that train a sparse set of numbers.

    Args:
        table: from `load_peft_comparison`.

    Returns:
        One row a run of `SPARSE`: ratio; used, the learning rate times what a trained number is multiplied with;
        law, `suggest_learning_rate` of the ratio; used / law; train_loss; score.
    """
    rows = table.loc[list(SPARSE)]
    law = rows["ratio"].map(suggest_learning_rate)
    used = rows["learning_rate"] * pd.Series(SPARSE)
    return pd.DataFrame(
        {"ratio": rows["ratio"], "used": used, "law": law, "used / law": used / law,
         "train_loss": rows["train_loss"], "score": rows["score"]}
    )  # fmt: skip


def compare_with(table: pd.DataFrame, run: str) -> pd.DataFrame:
    """Compare one run's score with that of each other run, on as many questions, and hold the family's error.

    Fisher's exact test of two shares of `QUESTIONS`. The runs have answered the same questions, and runs that agree on
    many of them are compared more sharply example by example (McNemar's test); those answers are not published.

    Args:
        table: from `load_peft_comparison`.
        run: its name.

    Returns:
        A row for each other run: difference (its score minus this one's, in points), p, and holm: p adjusted for all of
        them (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    right = (table["score"] * QUESTIONS / 100).round().astype(int)
    own = [right[run], QUESTIONS - right[run]]
    others = right.drop(run)
    p = np.array([stats.fisher_exact([own, [count, QUESTIONS - count]]).pvalue for count in others])
    columns = {"difference": table["score"].drop(run) - table.loc[run, "score"], "p": p}
    return pd.DataFrame(columns | {"holm": multipletests(p, method="holm")[1]}, index=others.index)
