"""Metrics against independent implementations, cases by hand, and what must hold for any answers."""

import itertools
from fractions import Fraction

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from task_files import lines_of, original

from rmbook.tasks.drop_metric import drop_scores, normalize_span, span_scores
from rmbook.tasks.metrics import best_f1, exact_match, normalize_answer, task_score, word_f1
from rmbook.tasks.records import Record, load_records
from rmbook.tasks.task import TaskError

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
def test_f1_and_exact_match_are_squads(prediction, answers):
    assert best_f1(prediction, answers) == pytest.approx(
        float(max(written_f1(prediction, a) for a in answers)), abs=1e-12
    )
    same = [written_normal_form(prediction) == written_normal_form(answer) for answer in answers]
    assert exact_match(prediction, answers) == float(any(same))


@given(answer_texts, answer_texts, st.sampled_from(ARTICLES), st.sampled_from(PUNCTUATION))
def test_articles_punctuation_capitals_and_order_do_not_matter(one, other, article, mark):
    score = word_f1(one, other)
    assert word_f1(other, one) == score and 0 <= score <= 1
    assert word_f1(f" {article.title()} {one.upper()} {mark}", other) == word_f1(one.upper(), other)
    assert word_f1(" ".join(reversed(normalize_answer(one).split())), other) == score
    assert exact_match(one, [other]) <= score or not normalize_answer(one)


CASES = [  # prediction, answers, F1, exact match
    ("the Denver Broncos", ["Denver Broncos"], 1, 1),
    ("Broncos.", ["Denver Broncos", "The Broncos"], 1, 1),
    ("Denver", ["Denver Broncos"], Fraction(2, 3), 0),
    ("to be to", ["to be or"], Fraction(2, 3), 0),
    ("28-yard", ["28 yard"], 0, 0),  # the hyphen goes without a space
    ("U.S.", ["us"], 1, 1),
    ("", ["Denver"], 0, 0),
    ("The", ["a"], 0, 1),  # nothing is left of both: SQuAD 1.1 counts common words, and there are none
    ("no answer", ["no answer", "x"], 1, 1),
    ("x", ["no answer", "x"], 0, 1),  # as MeZO: a first "no answer" asks for exactly that
    ("cannotanswer!", ["CANNOTANSWER"], 1, 1),
]


@pytest.mark.parametrize(("prediction", "answers", "f1", "exact"), CASES)
def test_cases_by_hand(prediction, answers, f1, exact):
    assert best_f1(prediction, answers) == pytest.approx(float(f1))
    assert exact_match(prediction, answers) == exact


@pytest.mark.parametrize(("task", "split"), [("SQuAD", "validation"), ("DROP", "train"), ("DROP", "validation")])
def test_real_answers_score_as_the_definition_says(task, split, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    records = load_records(task, split, path.parent)
    predictions = [
        f"In {record.answers[-1]}, the {other.answers[0]}"
        for record, other in zip(records, records[1:] + records[:1], strict=True)
    ]
    expected = sum(
        max(written_f1(text, answer) for answer in record.answers)
        for text, record in zip(predictions, records, strict=True)
    )
    assert task_score(records, predictions) == {"f1": pytest.approx(float(expected / len(records)), abs=1e-12)}
    perfect = task_score(records, [record.answers[-1] for record in records])["f1"]
    emptied = sum(not normalize_answer(record.answers[-1]) for record in records) / len(records)
    assert perfect >= 1 - emptied - 1e-12


def classified(*gold, task="RTE"):
    return Record(task, {}, gold=gold)


def test_accuracy_counts_any_of_the_right_options():
    assert task_score([classified(0), classified(1), classified(1)], [0, 0, 1]) == {"accuracy": pytest.approx(2 / 3)}
    several = [classified(0, 2, task="ReCoRD")] * 4
    assert task_score(several, [0, 1, 2, 3]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("records", "predictions", "message"),
    [
        ([], [], "one prediction a record, got 0 for 0 records"),
        ([classified(0)], [0, 1], "got 2 for 1 records"),
        ([classified(0), classified(0, task="CB")], [0, 0], "of one task, got records of CB, RTE"),
    ],
)
def test_what_cannot_be_scored_is_refused(records, predictions, message):
    with pytest.raises(TaskError, match=message):
        task_score(records, predictions)


def test_an_f1_without_answers_is_refused():
    with pytest.raises(TaskError, match="at least one right answer"):
        best_f1("x", [])


# DROP's official metric


def written_drop(predicted, answer) -> tuple[float, Fraction]:
    """All ways to pair spans are tried, with fractions."""

    def words(span):
        found = []
        for token in span.lower().replace("-", " ").split(" "):
            for attempt in (token, "".join(letter for letter in token if letter not in PUNCTUATION)):
                try:
                    token = str(float(attempt))
                    break
                except ValueError:
                    token = attempt
            found += [token] if token.count(".") == 1 else written_normal_form(token).split()
        return found

    def is_number(word):
        return word.replace(".", "").isascii() and word.replace(".", "").isdigit()

    def f1(mine, right):
        numbers = set(filter(is_number, right))
        if numbers and not numbers & set(mine):
            return Fraction(0)
        if not mine and not right:
            return Fraction(1)
        common = len(set(mine) & set(right))
        precision = Fraction(common, len(set(mine))) if mine else Fraction(1)
        recall = Fraction(common, len(set(right))) if right else Fraction(1)
        return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)

    mine, right = [words(span) for span in predicted], [words(span) for span in answer]
    size = max(len(mine), len(right))
    pad = [None] * size
    best = max(
        sum(f1(m, r) for m, r in zip(order, (right + pad)[:size], strict=True) if m is not None and r is not None)
        for order in itertools.permutations((mine + pad)[:size])
    )
    same = {" ".join(span) for span in mine} == {" ".join(span) for span in right}
    return float(same and len(mine) == len(right)), best / size


spans = st.lists(st.text("aAnthe -.,12", max_size=8), min_size=1, max_size=4)


@given(spans, spans)
def test_drops_official_metric_pairs_spans_at_best(predicted, answer):
    exact, f1 = span_scores(predicted, answer)
    expected_exact, expected_f1 = written_drop(predicted, answer)
    assert exact == expected_exact
    assert f1 == pytest.approx(float(expected_f1), abs=0.005 + 1e-9)  # rounded to two digits


@given(spans, spans, st.randoms())
def test_the_order_of_spans_does_not_matter(predicted, answer, random):
    shuffled = random.sample(answer, len(answer))
    assert span_scores(predicted, shuffled) == span_scores(predicted, answer)
    exact, f1 = span_scores(answer, shuffled)
    assert (exact, f1) == (1, 1)


DROP_CASES = [  # predicted, answers of the annotators, exact match, F1
    (["28-yard"], [["28 yards"]], 0, 0.5),
    (["28"], [["28.0"]], 1, 1),
    (["1,000 men"], [["1000 men"]], 1, 1),
    (["27 yards"], [["28 yards"]], 0, 0),  # the answer's number is missing
    (["the Bears", "Lions"], [["Lions", "Bears"]], 1, 1),
    (["Lions"], [["Lions", "Bears"]], 0, 0.5),
    (["Lions", "Lions"], [["Lions"]], 0, 0.5),
    (["Lions", "Cats"], [["Lions", "Bears"], ["Lions", "Cats"]], 1, 1),
    (["x", "x", "y"], [["x", "y", "y"]], 1, 0.67),  # the sets and their sizes agree, so it is exact
    (["a b c d e f g h"], [["  "], ["b c d"]], 0, 0.6),  # an empty answer is passed over; "a" is an article
]


@pytest.mark.parametrize(("predicted", "answers", "exact", "f1"), DROP_CASES)
def test_drop_cases_by_hand(predicted, answers, exact, f1):
    assert drop_scores(predicted, answers) == (exact, f1)


@pytest.mark.parametrize(("common", "rounded"), [(133, 0.66), (137, 0.68), (139, 0.7)])
def test_drop_rounds_as_the_official_program_does(common, rounded):
    one, other = (" ".join(f"w{number}" for number in range(first, first + 200)) for first in (0, 200 - common))
    assert span_scores([one], [other])[1] == rounded  # F1 is common / 200; Python's round gives 0.67, 0.69, 0.69


def test_drop_needs_spans():
    for predicted, answers in (([], [["x"]]), (["x"], []), (["x"], [[" "]])):
        with pytest.raises(TaskError, match="needs spans on both sides"):
            drop_scores(predicted, answers)


def test_real_drop_answers_are_right_and_another_number_is_wrong(tmp_path):
    raw = lines_of(original("DROP", "train", tmp_path, SHARED))
    checked = 0
    for section in raw.values():
        for question in section["qa_pairs"]:
            answer = question["answer"]
            found = answer["spans"] or [answer["number"]]
            if found[0].strip():
                assert drop_scores(list(reversed(found)), [found]) == (1, 1)
                checked += 1
            if answer["number"]:
                assert drop_scores([str(float(answer["number"]) + 1)], [[answer["number"]]]) == (0, 0)
    assert checked > 3000


def test_spans_in_normal_form():
    assert normalize_span("The 28-Yard, 1,000 TDs.") == "28.0 yard 1000.0 tds"
