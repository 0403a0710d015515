"""Original files: DROP's kinds of answers, and what is wrong with a damaged file said in one line with its place."""

import json

import pytest
from conftest import SHARED
from task_files import lines_of, one_line, original

from rmbook.errors import TaskError
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.examples import to_example
from rmbook.tasks.language import LANGUAGE_TASKS


def drop_file(folder, *answers, split="validation"):
    question = {"question": "When?", "query_id": "1", "answer": answers[0], "validated_answers": list(answers)}
    name = {"train": "drop_dataset_train.json", "validation": "drop_dataset_dev.json"}[split]
    (folder / name).write_text(json.dumps({"nfl_1": {"passage": "It was.", "qa_pairs": [question]}}))


def drop_answer(number="", spans=(), **date):
    return {"number": number, "date": {"day": "", "month": "", "year": ""} | date, "spans": list(spans)}


def test_drops_numbers_dates_and_spans_become_texts(tmp_path):
    answers = (
        drop_answer("3"),
        drop_answer(day="9", month="March", year="2021"),
        drop_answer(month="May", year="1999"),
        drop_answer(year="1990"),
        drop_answer(spans=["A", "B"]),
    )
    drop_file(tmp_path, *answers)
    (example,) = load_examples("DROP", "validation", tmp_path)
    assert example.answers == ("3", "9 March 2021", "May 1999", "1990", "A", "B")


@pytest.mark.parametrize(
    "answer", [drop_answer(), drop_answer("3", ["A"]), drop_answer("3", year="1"), drop_answer(spans="A", day="1")]
)
def test_drops_answers_of_no_kind_or_of_two_are_left_out(answer, tmp_path):
    drop_file(tmp_path, answer, split="train")
    with pytest.raises(TaskError, match="drop_dataset_train.json holds no examples: get DROP's train split again"):
        load_examples("DROP", "train", tmp_path)


def test_a_byte_order_mark_is_read_over(tmp_path):
    squad = {"title": "t", "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}]}
    contents = {
        ("SST-2", "train.tsv"): "sentence\tlabel\ngood\t1\n",
        ("RTE", "train.jsonl"): '{"premise": "a", "hypothesis": "b", "label": "entailment"}\n',
        ("SQuAD", "train-v1.1.json"): json.dumps({"data": [squad]}),
    }
    for (task, name), text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        plain = load_examples(task, "train", tmp_path)
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_examples(task, "train", tmp_path) == plain and len(plain) == 1


@pytest.mark.parametrize(
    ("text", "message"), [(r"It \ud83d", r"half a character after .*It \\ud83d"), ("[" * 10**5, "JSON|nested")]
)
def test_texts_that_no_tokenizer_takes_are_named_with_the_line(text, message, tmp_path):
    good = '{"premise": "a", "hypothesis": "b \\ud83d\\ude00", "label": "entailment"}\n'
    bad = text if text.startswith("[") else good.replace("a", text, 1)
    (tmp_path / "train.jsonl").write_text(3 * good + bad + good)
    with pytest.raises(TaskError, match=rf"train.jsonl, line 4: .*({message})") as error:
        load_examples("RTE", "train", tmp_path)
    one_line(error)
    with pytest.raises(TaskError, match="premise holds half a character"):
        to_example(LANGUAGE_TASKS["RTE"], {"premise": "\ud83d", "hypothesis": "", "label": 0})


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("RTE", "train.jsonl", "", "holds no examples"),
        ("RTE", "train.jsonl", '{"premise": "p"', "line 1: not JSON"),
        (
            "RTE",
            "train.jsonl",
            '{"premise": "p", "label": "entailment"}',
            "line 1: field 'hypothesis' of RTE's original",
        ),
        (
            "RTE",
            "train.jsonl",
            '\n{"premise": "p", "hypothesis": "h", "label": 1}',
            "line 2: label 1 is unknown: RTE's",
        ),
        ("RTE", "train.jsonl", "[1]", "line 1: not RTE's original format"),
        (
            "CB",
            "train.jsonl",
            '{"premise": "p", "hypothesis": "h", "label": "not_entailment"}',
            "'not_entailment' is unknown",
        ),
        ("WSC", "train.jsonl", '{"text": "a", "target": {"span1_text": "b"}, "label": true}', "'span1_index'"),
        ("SST-2", "train.tsv", "sentence\tlabel\nfine\t2\n", "line 2: label '2' is unknown: SST-2's are '0', '1'"),
        ("SST-2", "train.tsv", "sentence\tlabel\nfine\n", r"line 2: 1 columns, expected 2: \['sentence', 'label'\]"),
        ("SST-2", "train.tsv", "text\tlabel\nfine\t1\n", "line 2: field 'sentence'"),
        ("SST-2", "train.tsv", "sentence\tlabel\n", "holds no examples"),
        ("SQuAD", "train-v1.1.json", '{"data":\n\n [', "line 3: not JSON"),
        ("SQuAD", "train-v1.1.json", '{"version": 1}', "field 'data'"),
        (
            "DROP",
            "drop_dataset_dev.json",
            '{"s": {"passage": "p", "qa_pairs": [{"question": "q"}]}}',
            "'validated_answers'",
        ),
    ],
)
def test_damaged_files_are_named_with_the_line(task, name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    split = "validation" if "dev" in name else "train"
    with pytest.raises(TaskError, match=message) as error:
        load_examples(task, split, tmp_path)
    assert str(tmp_path / name) in one_line(error)


def test_a_missing_file_names_both_places(tmp_path):
    with pytest.raises(TaskError, match="RTE has no train file: neither") as error:
        load_examples("RTE", "train", tmp_path)
    assert str(tmp_path / "RTE" / "train.jsonl") in one_line(error)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"premise": "\xff"}')
    with pytest.raises(TaskError, match="train.jsonl is not UTF-8 text"):
        load_examples("RTE", "train", tmp_path)


def test_the_made_files_hold_a_separator_inside_a_line(tmp_path):
    path = original("WiC", "train", tmp_path, SHARED)
    assert (
        len(path.read_text(encoding="utf-8").splitlines())
        > len(lines_of(path))
        == len(load_examples("WiC", "train", tmp_path))
    )
