"""Metrics that the paper reports: accuracy, and for SQuAD and DROP the F1 of words; as fractions, not per cent."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from rmbook.errors import TaskError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_ANSWER = ("CANNOTANSWER", "no answer")


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: small letters, no ASCII punctuation, no articles, single spaces; in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(prediction: str, answer: str) -> float:
    """F1 of the words of a prediction and one answer, both in normal form and with repetitions (SQuAD 1.1).

    Without a common word it is 0, also where both are empty: an article alone, for instance.
    """
    predicted, right = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = (Counter(predicted) & Counter(right)).total()
    return 2 * common / (len(predicted) + len(right)) if common else 0.0


def best_f1(prediction: str, answers: Sequence[str]) -> float:
    """The largest `word_f1` over the right answers.

    DROP's answers are scored in the same way: every span of every annotator is an answer of its own, as on the hub and
    in MeZO. DROP's official metric, which wants all spans of one annotator at once, is not computed here.
    A first answer "CANNOTANSWER" or "no answer" asks for exactly that, as in MeZO.
    """
    if not answers:
        raise TaskError("F1 needs at least one right answer, got none.")
    if answers[0] in NO_ANSWER:
        return float(normalize_answer(answers[0]) == normalize_answer(prediction))
    return max(word_f1(prediction, answer) for answer in answers)
