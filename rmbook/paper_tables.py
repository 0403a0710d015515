"""Numbers that the paper printed: its tables of language models, to stand beside what is measured here.

They are facts of the paper (Xu and Zhang, ICML 2024), not results of this package; chapters label them "paper".
"""

from importlib.resources import files
from pathlib import Path

import pandas as pd

TABLES = {
    4: "Llama-2-7b: scores and the best learning rates",
    5: "OPT: scores of random masking at nine ratios and of the baselines",
    6: "OPT: best learning rates of random masking",
    7: "OPT: best learning rates of the baselines",
}


def load_paper_table(number: int) -> pd.DataFrame:
    """One of the paper's tables, one row a number.

    Args:
        number: 4 (Llama-2-7b), 5 (OPT's scores), 6 or 7 (OPT's best learning rates).

    Returns:
        Columns, as far as the table has them:
            model: "OPT-125m", "OPT-1.3b", "OPT-13b" or "Llama-2-7b".
            method: by its name in `rmbook.methods`.
            ratio: the paper's "Params", trained parameters / all parameters of the model; NaN where none is printed.
            task: one of the eleven, or "Avg", the mean over them that the paper prints.
            score: in percent, accuracy, or F1 for SQuAD and DROP; mean over three runs (table 4 names no number of
                runs).
            learning_rate: the best one of the paper's search.
        `.attrs["source"]` says which table it is.

    Raises:
        ValueError: another number.
    """
    if number not in TABLES:
        raise ValueError(f"number must be one of {', '.join(map(str, TABLES))}, got {number!r}.")
    table = pd.read_csv(Path(str(files("rmbook_results"))) / "paper" / f"table{number}.csv")
    table.attrs["source"] = f"Xu and Zhang (2024), table {number} ({TABLES[number]})"
    return table
