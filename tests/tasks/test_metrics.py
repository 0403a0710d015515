"""Metrics against independent implementations, cases by hand, and what must hold for any answers."""

import itertools
from fractions import Fraction

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from task_files import original

from rmbook.errors import TaskError
from rmbook.tasks.catalog import find_task, load_examples
from rmbook.tasks.examples import Example
from rmbook.tasks.metrics import best_f1, normalize_answer, word_f1

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
ARTICLES = ("a", "an", "the")
answer_texts = st.text("aAnthe \t.-,'12é—½_", max_size=14)


def written_normal_form(text: str) -> str:
    """Letter by letter: runs of letters and digits that are an article go, whatever stands beside them."""
    kept = [letter for letter in text.lower() if letter not in PUNCTUATION]
    runs = ["".join(run) for _, run in itertools.groupby(kept, key=str.isalnum)]
    return " ".join("".join(" " if run in ARTICLES else run for run in runs).split())


def written_f1(prediction: str, answer: str) -> Fraction:
    mine, right = written_normal_form(prediction).split(), written_normal_form(answer).split()
    left, same = list(right), 0
    for word in mine:
        if word in left:
            left.remove(word)
            same += 1
    if not same:
        return Fraction(0)
    precision, recall = Fraction(same, len(mine)), Fraction(same, len(right))
    return 2 * precision * recall / (precision + recall)


@given(answer_texts)
def test_the_normal_form_is_squads(text):
    assert normalize_answer(text) == written_normal_form(text)


@given(answer_texts, st.lists(answer_texts, min_size=1, max_size=4))
def test_f1_is_squads(prediction, answers):
    assert best_f1(prediction, answers) == pytest.approx(
        float(max(written_f1(prediction, a) for a in answers)), abs=1e-12
    )


@given(answer_texts, answer_texts, st.sampled_from(ARTICLES), st.sampled_from(PUNCTUATION))
def test_articles_punctuation_capitals_and_order_do_not_matter(one, other, article, mark):
    score = word_f1(one, other)
    assert word_f1(other, one) == score and 0 <= score <= 1
    assert word_f1(f" {article.title()} {one.upper()} {mark}", other) == word_f1(one.upper(), other)
    assert word_f1(" ".join(reversed(normalize_answer(one).split())), other) == score


CASES = [  # prediction, answers, F1
    ("the Denver Broncos", ["Denver Broncos"], 1),
    ("Broncos.", ["Denver Broncos", "The Broncos"], 1),
    ("Denver", ["Denver Broncos"], Fraction(2, 3)),
    ("to be to", ["to be or"], Fraction(2, 3)),
    ("28-yard", ["28 yard"], 0),  # the hyphen goes without a space
    ("U.S.", ["us"], 1),
    ("", ["Denver"], 0),
    ("The", ["a"], 0),  # nothing is left of both: SQuAD 1.1 counts common words, and there are none
    ("no answer", ["no answer", "x"], 1),
    ("x", ["no answer", "x"], 0),  # as MeZO: a first "no answer" asks for exactly that
    ("cannotanswer!", ["CANNOTANSWER"], 1),
]


@pytest.mark.parametrize(("prediction", "answers", "f1"), CASES)
def test_cases_by_hand(prediction, answers, f1):
    assert best_f1(prediction, answers) == pytest.approx(float(f1))


@pytest.mark.parametrize(("task", "split"), [("SQuAD", "validation"), ("DROP", "train"), ("DROP", "validation")])
def test_real_answers_score_as_the_definition_says(task, split, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    examples = load_examples(task, split, path.parent)
    predictions = [
        f"In {example.answers[-1]}, the {other.answers[0]}"
        for example, other in zip(examples, examples[1:] + examples[:1], strict=True)
    ]
    expected = sum(
        max(written_f1(text, answer) for answer in example.answers)
        for text, example in zip(predictions, examples, strict=True)
    )
    wanted = pytest.approx(float(expected / len(examples)), abs=1e-12)
    assert find_task(task).score(examples, predictions) == {"f1": wanted}
    perfect = find_task(task).score(examples, [example.answers[-1] for example in examples])["f1"]
    emptied = sum(not normalize_answer(example.answers[-1]) for example in examples) / len(examples)
    assert perfect >= 1 - emptied - 1e-12


def classified(*gold, task="RTE"):
    return Example(task, {}, gold=gold)


def test_accuracy_counts_any_of_the_right_options():
    found = find_task("RTE").score([classified(0), classified(1), classified(1)], [0, 0, 1])
    assert found == {"accuracy": pytest.approx(2 / 3)}
    several = [classified(0, 2, task="ReCoRD")] * 4
    assert find_task("ReCoRD").score(several, [0, 1, 2, 3]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("examples", "predictions", "message"),
    [
        ([], [], "one prediction for each example, got 0 for 0 examples"),
        ([classified(0)], [0, 1], "got 2 for 1 examples"),
        ([classified(0), classified(0, task="CB")], [0, 0], "RTE cannot score examples of CB"),
    ],
)
def test_what_cannot_be_scored_is_refused(examples, predictions, message):
    with pytest.raises(TaskError, match=message):
        find_task("RTE").score(examples, predictions)


def test_an_f1_without_answers_is_refused():
    with pytest.raises(TaskError, match="at least one right answer"):
        best_f1("x", [])
