"""Predictions and open exercises: what a reader may give, and what he is told."""

import numpy as np
import pytest
import torch
from browser import needs_browser, open_page

from rmbook.widgets.answers import ANSWERS
from rmbook.widgets.check import check, compare, verdict
from rmbook.widgets.predict import predict

REPLIES = {"half <b>": "Too many.", "a fiftieth": "The density says so."}


def test_a_prediction_needs_options_and_one_that_is_right():
    for replies, right in ((REPLIES, "none"), ({"one": "."}, "one")):
        with pytest.raises(ValueError, match="right must be one of at least two options"):
            predict("How many?", replies, right=right)
    page = predict("How many?", REPLIES, right="a fiftieth")._repr_html_()
    assert page == predict("How many?", REPLIES, right="a fiftieth")._repr_html_()
    assert "half &lt;b&gt;" in page and page.count("Yes.") == 1 == page.count("No.") and "script" not in page


@needs_browser
def test_the_replies_stay_hidden_until_an_option_is_chosen(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><body>{predict('How many?', REPLIES, right='a fiftieth')._repr_html_()}</body>")
    with open_page(path.as_uri(), java_script_enabled=False) as page:
        replies = page.locator("details p")
        assert [replies.nth(k).is_visible() for k in range(2)] == [False, False]
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert [replies.nth(k).is_visible() for k in range(2)] == [True, False]
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert replies.nth(1).inner_text() == "Yes. The density says so."


@pytest.mark.parametrize("label", ANSWERS)
def test_the_right_answer_is_right_and_others_are_told_what_is_off(label):
    exercise = ANSWERS[label]
    wanted = bool(exercise.inputs)
    assert verdict(label, ...).startswith("not answered yet")
    if wanted:
        assert verdict(label, exercise.right).startswith("right")
        assert verdict(label, lambda *inputs: ...).startswith("not answered yet")
        assert "times the right one" in verdict(label, lambda *inputs: 3 * exercise.right(*inputs)) or "too large" in (
            verdict(label, lambda *inputs: 3 * exercise.right(*inputs))
        )
        assert "sign is wrong" in verdict(label, lambda *inputs: -exercise.right(*inputs))
        assert "raised ZeroDivisionError" in verdict(label, lambda *inputs: 1 / 0)
        assert "asks for a function, got float" in verdict(label, 3.0)
        assert "{" not in verdict(label, lambda *inputs: "a word")
    else:
        assert verdict(label, exercise.right()) == "right."
        assert "too small" in verdict(label, exercise.right() / 3) and "sign" in verdict(label, -exercise.right())
        assert "one over" in verdict(label, 1 / exercise.right())


def test_at_the_corner_of_the_roof_a_matrix_product_does_that_many_operations_a_byte():
    exercise = ANSWERS["ex-cost-tokens"]
    for width, corner in exercise.inputs():
        tokens = exercise.right(width, corner)
        moved = 4 * (2 * tokens * width + width**2)  # bytes: input, output and weight
        assert 2 * tokens * width**2 / moved == pytest.approx(corner)


def test_what_is_off_between_two_arrays_is_named():
    right = np.array([1.0, 2.0, -4.0])
    assert compare(torch.tensor(right, requires_grad=True), right, 1e-3) is None
    assert compare(right * (1 + 1e-5), right, 1e-3) is None
    assert "3 times" in compare(3 * right, right, 1e-3)
    assert "shape is (2,), where (3,)" in compare(right[:2], right, 1e-3)
    assert "1 of 3 entries are wrong" in compare([1.0, 2.0, 4.0], right, 1e-3)
    assert "infinite" in compare(np.array([1.0, np.nan, 2.0]), right, 1e-3)
    assert "got str" in compare("a word", right, 1e-3) and "expected" in compare({}, right, 1e-3)


def test_check_prints_its_verdict_and_knows_its_labels(capsys):
    check("ex-misprint", 140)
    assert capsys.readouterr().out == "ex-misprint: not yet: your answer, 140, is too large.\n"
    with pytest.raises(ValueError, match="no open exercise has the label 'ex-other'; there are ex-bias, "):
        check("ex-other", 1)
