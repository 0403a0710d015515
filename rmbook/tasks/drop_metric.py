"""DROP's official exact match and F1 for answers of several spans (Dua et al., 2019, section 5).

The paper does not report it: MeZO scores DROP as SQuAD (`rmbook.tasks.metrics`). It is here for comparison with DROP's
leaderboard, and needs the original files, since the hub's conversion no longer says which spans belong together.
"""

import re
import string
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from rmbook.tasks.task import TaskError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def drop_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The largest exact match and the largest F1 over the annotators.

    Args:
        predicted: the spans of the prediction, one or more.
        answers: for each annotator the spans of the answer, one or more; an empty first span is passed over.

    Returns:
        exact match 0 or 1, and F1 rounded to two digits; not always of the same annotator, as in the official program.

    Raises:
        TaskError: no spans predicted, or no answer that can be compared.
    """
    scores = [span_scores(predicted, answer) for answer in answers if answer and answer[0].strip()]
    if not predicted or not scores:
        raise TaskError(f"DROP's metric needs spans on both sides, got {list(predicted)} and {list(answers)}.")
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def span_scores(predicted: Sequence[str], answer: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (two digits) of spans against the spans of one answer, aligned one to one at best."""
    forms = [normalize_span(span) for span in predicted], [normalize_span(span) for span in answer]
    exact = float(set(forms[0]) == set(forms[1]) and len(forms[0]) == len(forms[1]))
    f1 = np.array([[_bag_f1(set(mine.split()), set(right.split())) for mine in forms[0]] for right in forms[1]])
    right, mine = linear_sum_assignment(f1, maximize=True)
    aligned = np.zeros(max(f1.shape))  # spans without a partner count as 0
    aligned[right] = f1[right, mine]
    return exact, float(np.round(aligned.mean(), 2))  # numpy's rounding, as there: 0.665 becomes 0.66, Python's 0.67


def normalize_span(text: str) -> str:
    """DROP's normal form: words split at spaces and hyphens, numbers as floats, else no punctuation or articles."""
    words = (_ARTICLES.sub(" ", _normalize_word(word.lower())).split() for word in re.split("[ -]", text))
    return " ".join(part for parts in words for part in parts)


def _normalize_word(word: str) -> str:
    word = word if _is_number(word) else word.translate(_PUNCTUATION)
    return str(float(word)) if _is_number(word) else word


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _bag_f1(predicted: set[str], right: set[str]) -> float:
    """F1 of two sets of words; 0 where the answer has numbers and the prediction has none of them."""
    numbers = {word for word in right if _is_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    common = len(predicted & right)
    precision = common / len(predicted) if predicted else 1.0
    recall = common / len(right) if right else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
