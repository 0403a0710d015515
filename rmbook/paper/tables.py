"""Numbers that the paper printed, its nine numbered tables, to stand beside what is measured here.

They are facts of the paper (Xu and Zhang, ICML 2024), not results of this package; chapters label them "paper".
"""

from importlib.resources import files
from pathlib import Path

import pandas as pd

from rmbook.yaml_files import read_yaml

_FACTS = read_yaml(Path(__file__).with_suffix(".yaml"))
TABLES = {int(number): title for number, title in _FACTS["tables"].items()}
TEST_RECORDS, TEST_IMAGES = _FACTS["test_records"], _FACTS["test_images"]  # examples that one run is tested on


def load_paper_table(number: int) -> pd.DataFrame:
    """One of the paper's tables, one row a number.

    Args:
        number: 1 to 9. All of table 1 is in table 5, too.

    Returns:
        Columns, as far as the table has them; `.attrs["source"]` says which table it is.

        - model: "OPT-125m", "OPT-1.3b", "OPT-13b", "Llama-2-7b" or "CLIP-ViT-B/16".
        - method: by its name in `rmbook.methods.apply`; table 9 prints "Masking", its caption says structured.
        - ratio: the paper's "Params", trained parameters / all parameters of the model; NaN where none is printed.
        - task: one of the eleven, or "Avg", the mean over them that the paper prints; in table 2, a set of images.
        - score: in percent, accuracy, or F1 for SQuAD and DROP; mean over three runs ("each experiment", says the
          paper of its language models; nothing of images).
        - learning_rate: the best one of the paper's search.

    Raises:
        ValueError: another number.
    """
    if number not in TABLES:
        raise ValueError(f"number must be one of {', '.join(map(str, TABLES))}, got {number!r}.")
    table = pd.read_csv(Path(str(files("rmbook_results"))) / "paper" / f"table{number}.csv")
    table.attrs["source"] = f"Xu and Zhang (2024), table {number} ({TABLES[number]})"
    return table


def load_score_rows() -> pd.DataFrame:
    """Tables 5 and 8 in one: the scores of OPT, a row a method and ratio, a column a task, without the averages.

    Returns:
        index (model, row), row such as "full", "mask 0.1%" or "structured 0.005%"; scores in percent.
    """
    scores = pd.concat([load_paper_table(5), load_paper_table(8)]).query("task != 'Avg'")
    masks = scores["method"].str.endswith("masking")
    percent = scores["ratio"].map(lambda ratio: f" {100 * ratio:g}%").where(masks, "")
    scores = scores.assign(row=scores["method"].map(_FACTS["labels"]) + percent)
    rows = scores.pivot_table(index=["model", "row"], columns="task", values="score", sort=False)
    return rows[list(TEST_RECORDS)]
