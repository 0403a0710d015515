"""Records: original files and the hub give the same ones; what is wrong with a file is said in one line."""

import dataclasses
import sys
import types

import pytest
from conftest import SHARED
from task_files import SPLITS, hub_rows, one_line, original

from rmbook.errors import TaskError
from rmbook.tasks.catalog import find_task, load_examples
from rmbook.tasks.examples import Example, to_example
from rmbook.tasks.hub import hub_rows as rows_of_the_hub
from rmbook.tasks.language import LANGUAGE_TASKS, LanguageTask
from rmbook.tasks.original_files import read_rows
from rmbook.tasks.task import read_tasks

every_split = pytest.mark.parametrize(("task", "split"), SPLITS)


@every_split
def test_original_files_and_the_hubs_columns_give_the_same_records(task, split, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    rows = hub_rows(task, split, path)
    from_hub = [to_example(LANGUAGE_TASKS[task], row) for row in rows]
    assert load_examples(task, split, path.parent) == from_hub
    if path.parent.name == LANGUAGE_TASKS[task].folder:  # the folder above the original one will do, too
        assert load_examples(task, split, path.parent.parent) == from_hub
    assert len(from_hub) == len(rows) > 0


@every_split
def test_parquet_files_read_by_datasets_give_the_same_records(task, split, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: it reads the hub's files")
    path = original(task, split, tmp_path, SHARED)
    configuration = LANGUAGE_TASKS[task].configuration or "default"
    repository = tmp_path / "repository"
    (repository / configuration).mkdir(parents=True)
    datasets.Dataset.from_list(hub_rows(task, split, path)).to_parquet(repository / configuration / f"{split}.parquet")
    (repository / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n  - split: {split}\n"
        f"    path: {configuration}/{split}.parquet\n---\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    local = dataclasses.replace(LANGUAGE_TASKS[task], repository=str(repository))
    assert local.load_examples(split) == load_examples(task, split, path.parent)


class Table(list):
    """The part of `datasets.Dataset` that is used."""

    @property
    def column_names(self):
        return list(self[0])

    def select_columns(self, columns):
        return Table({name: row[name] for name in columns} for row in self)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`; its calls are kept, and `answer` makes what it gives back."""
    module = types.ModuleType("datasets")
    module.exceptions = types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    module.calls = []

    def load_dataset(*args, **kwargs):
        module.calls.append((args, kwargs))
        return module.answer()

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_the_hub_is_asked_for_a_pinned_commit(hub):
    hub.answer = lambda: Table([{"premise": "p", "hypothesis": "h", "label": 2, "idx": 0}])
    assert load_examples("cb", "validation") == [Example("CB", {"premise": "p", "hypothesis": "h"}, gold=(2,))]
    revision = "3de24cf8022e94f4ee4b9d55a6f539891524d646"
    assert hub.calls == [(("aps/super_glue", "cb"), {"revision": revision, "split": "validation"})]


def test_every_repository_is_pinned_to_a_commit():
    assert all(len(task.revision) == 40 and int(task.revision, 16) for task in LANGUAGE_TASKS.values())
    assert {task.configuration for task in LANGUAGE_TASKS.values() if task.repository == "aps/super_glue"} == {
        *("rte", "cb", "wsc.fixed", "wic", "multirc", "copa", "record")
    }


def test_without_the_hub_the_message_says_what_to_do(hub):
    def unreachable():
        raise ConnectionError("Couldn't reach\nthe hub")

    hub.answer = unreachable
    with pytest.raises(TaskError, match="connect once to fill the cache, or give data_dir") as error:
        load_examples("squad", "train")
    assert "train-v1.1.json" in one_line(error) and "rajpurkar/squad" in str(error.value)


def test_without_datasets_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match="pip install datasets, or give data_dir") as error:
        load_examples("SST-2", "train")
    one_line(error)


def test_a_hub_table_without_a_column_is_named(hub):
    hub.answer = lambda: Table([{"text": "t", "label": 0}])
    with pytest.raises(TaskError, match=r"nyu-mll/glue \(sst2\) has no column sentence, only text, label") as error:
        load_examples("SST-2", "train")
    one_line(error)


@pytest.mark.parametrize(("load", "folder"), [(rows_of_the_hub, ()), (read_rows, (".",))])
def test_other_splits_are_refused(load, folder):
    with pytest.raises(TaskError, match="split must be train or validation, got 'test'"):
        load(LANGUAGE_TASKS["RTE"], "test", *folder)


def test_a_task_is_found_by_any_spelling_of_its_name():
    for name, spellings in {"SST-2": "sst2 SST_2 Sst-2", "ReCoRD": "record", "WiC": "WIC", "COPA": "Copa"}.items():
        assert all(find_task(spelling).name == name for spelling in spellings.split())


def test_an_unknown_task_shows_the_closest_names():
    with pytest.raises(TaskError, match="unknown task 'sst': did you mean SST-2") as error:
        find_task("sst")
    one_line(error)
    with pytest.raises(TaskError, match="unknown task 'zzz': known are SST-2, RTE"):
        find_task("zzz")


GOOD = {
    "SST-2": {"sentence": "s", "label": 0},
    "RTE": {"premise": "p", "hypothesis": "h", "label": 1},
    "CB": {"premise": "p", "hypothesis": "h", "label": 2},
    "BoolQ": {"question": "q", "passage": "p", "answer": True},
    "WSC": {"text": "t", "span1_text": "a", "span2_text": "b", "label": 1},
    "WiC": {"word": "w", "sentence1": "a", "sentence2": "b", "label": 0},
    "MultiRC": {"paragraph": "p", "question": "q", "answer": "a", "label": 1},
    "COPA": {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1},
    "ReCoRD": {"passage": "p", "query": "q", "entities": ["B", "A", "B"], "answers": ["B"]},
    "SQuAD": {"title": "t", "context": "c", "question": " q ", "answers": {"text": ["a"]}},
    "DROP": {"passage": "p", "question": "q", "answers_spans": {"spans": ["a"]}},
}


@pytest.mark.parametrize("task", LANGUAGE_TASKS)
def test_each_missing_column_is_named(task):
    assert to_example(LANGUAGE_TASKS[task], GOOD[task]).task == task
    for column in GOOD[task]:
        row = {name: value for name, value in GOOD[task].items() if name != column}
        with pytest.raises(TaskError, match=rf"^file, example 7: no column {column}; {task} needs "):
            to_example(LANGUAGE_TASKS[task], row, "file, example 7")
        with pytest.raises(TaskError, match=r"^here: .*(must|out of range)"):
            to_example(LANGUAGE_TASKS[task], GOOD[task] | {column: None}, "here")


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("SST-2", {"label": -1}, "label -1 is out of range: SST-2 has 0 to 1"),
        ("SST-2", {"label": True}, "label True is out of range"),
        ("CB", {"label": 3}, "label 3 is out of range: CB has 0 to 2"),
        ("COPA", {"label": 2}, "label 2 is out of range: COPA has 0 to 1"),
        ("COPA", {"question": "why"}, "question must be cause or effect, got 'why'"),
        ("BoolQ", {"answer": 1}, "answer must be true or false, got 1"),
        ("BoolQ", {"question": ""}, "question is empty"),
        ("ReCoRD", {"answers": ["C"]}, r"answers \['C'\] must be among the entities \['A', 'B'\]"),
        ("ReCoRD", {"answers": []}, r"answers \[\] must be among the entities"),
        ("SQuAD", {"answers": {"text": []}}, "answers.text is empty"),
        ("DROP", {"answers_spans": {"types": []}}, "answers_spans must hold spans"),
        ("DROP", {"answers_spans": {"spans": [3]}}, "answers_spans.spans must be a list of texts"),
    ],
)
def test_values_that_cannot_be_are_named(task, changed, message):
    with pytest.raises(TaskError, match=f"^here: {message}") as error:
        to_example(LANGUAGE_TASKS[task], GOOD[task] | changed, "here")
    one_line(error)


def test_record_has_all_its_right_answers_by_number_in_any_order_of_the_entities():
    row = {"passage": "p", "query": "q", "entities": ["C", "A", "B", "A"], "answers": ["C", "A"]}
    wanted = Example("ReCoRD", {"passage": "p", "query": "q"}, ("A", "B", "C"), (0, 2))
    assert to_example(LANGUAGE_TASKS["ReCoRD"], row) == wanted


@pytest.mark.parametrize("task", ["SQuAD", "DROP"])
def test_spaces_around_a_question_make_no_other_record(task):
    spaced, plain = (to_example(LANGUAGE_TASKS[task], GOOD[task] | {"question": text}) for text in (" q  ", "q"))
    assert spaced == plain and plain.texts["question"] == "q"


def test_a_table_of_tasks_with_a_wrong_name_is_refused(tmp_path):
    table = tmp_path / "tasks.yaml"
    table.write_text("X: {repository: a/b, revision: c, columns: [text], folder: X}\n")
    assert read_tasks(LanguageTask, table)["X"].columns == ("text",)
    for wrong in ("X: {repository: a/b, revision: c, column: [text], folder: X}", "X: {repository: a/b}"):
        table.write_text(wrong)
        with pytest.raises(TypeError, match="column"):
            read_tasks(LanguageTask, table)
