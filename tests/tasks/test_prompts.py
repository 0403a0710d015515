"""Prompts against the paper's templates written down once more."""

import pytest
from conftest import SHARED
from task_files import SPLITS, hub_rows, original
from written_prompts import WRITTEN, written

from rmbook.tasks.prompts import prompt
from rmbook.tasks.records import Record, load_records
from rmbook.tasks.task import TASKS


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_every_prompt_is_the_papers_to_the_byte(task, split, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    rows, records = hub_rows(task, split, path), load_records(task, split, path.parent)
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        context, continuations = prompt(record)
        text, texts, right = written(task, row)
        assert context.encode() == text.encode()
        assert [(context + continuation).encode() for continuation in continuations] == [t.encode() for t in texts]
        assert record.gold == tuple(number for number, is_right in enumerate(right) if is_right)


COPA_CASES = [
    ("I was cold.", "I shivered.", "I was cold so I shivered."),
    ("It rained. ", "I'm wet.", "It rained so i'm wet."),
    ("Who knows?", "The Sun rose.", "Who knows? so the Sun rose."),
    ("Etc..", "It", "Etc. so it"),
]


@pytest.mark.parametrize(("premise", "choice", "text"), COPA_CASES)
def test_copas_choice_goes_on_with_the_sentence(premise, choice, text):
    record = Record("COPA", {"premise": premise, "question": "effect"}, (choice, "x"), (0,))
    context, continuations = prompt(record)
    assert context + continuations[0] == text


def test_braces_and_placeholders_in_texts_are_left_alone():
    record = Record("RTE", {"premise": "{o} {premise}", "hypothesis": "{hypothesis}"}, gold=(0,))
    assert prompt(record)[0] == '{o} {premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'


def test_every_task_has_a_template():
    assert set(WRITTEN) == set(TASKS)
