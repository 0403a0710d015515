"""Prompts against the paper's templates written down once more."""

import pytest
from conftest import SHARED
from task_files import SPLITS, hub_rows, original
from written_prompts import WRITTEN, written

from rmbook.tasks.catalog import load_examples
from rmbook.tasks.examples import Example
from rmbook.tasks.language import LANGUAGE_TASKS
from rmbook.tasks.prompts import prompt


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_every_prompt_is_the_papers_to_the_byte(task, split, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    rows, examples = hub_rows(task, split, path), load_examples(task, split, path.parent)
    assert len(rows) == len(examples)
    for row, example in zip(rows, examples, strict=True):
        context, continuations = prompt(example)
        text, texts, right = written(task, row)
        assert context.encode() == text.encode()
        assert [(context + continuation).encode() for continuation in continuations] == [t.encode() for t in texts]
        assert example.gold == tuple(number for number, is_right in enumerate(right) if is_right)


COPA_CASES = [
    ("I was cold.", "I shivered.", "I was cold so I shivered."),
    ("It rained. ", "I'm wet.", "It rained so i'm wet."),
    ("Who knows?", "The Sun rose.", "Who knows? so the Sun rose."),
    ("Etc..", "It", "Etc. so it"),
]


@pytest.mark.parametrize(("premise", "choice", "text"), COPA_CASES)
def test_copas_choice_goes_on_with_the_sentence(premise, choice, text):
    example = Example("COPA", {"premise": premise, "question": "effect"}, (choice, "x"), (0,))
    context, continuations = prompt(example)
    assert context + continuations[0] == text


def test_braces_and_placeholders_in_texts_are_left_alone():
    example = Example("RTE", {"premise": "{o} {premise}", "hypothesis": "{hypothesis}"}, gold=(0,))
    assert prompt(example)[0] == '{o} {premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'


def test_every_task_has_a_template():
    assert set(WRITTEN) == set(LANGUAGE_TASKS)
