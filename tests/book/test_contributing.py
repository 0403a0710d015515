"""The worked examples of CONTRIBUTING.md: each runs as it stands, and what it adds works beside what is there."""

import json
import re
from pathlib import Path

import pytest
import test_book
import torch
import yaml
from torch import nn

from rmbook import apply_method, apply_random_mask
from rmbook.engine.backends import PRODUCTS
from rmbook.methods.apply import METHODS
from rmbook.methods.settings import METHOD_SETTINGS, MethodError
from rmbook.tasks.language import LanguageTask
from rmbook.tasks.prompts import TEMPLATES, prompt
from rmbook.tasks.task import read_tasks

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## (?!Summary)|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    found = re.findall(rf"^(`{{3,}}){language}\n(.*?)^\1$", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return [code for _, code in found]


@pytest.fixture
def registered():
    """The tables of methods, backends and prompts, put back afterwards."""
    tables = (METHODS, METHOD_SETTINGS, PRODUCTS, TEMPLATES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_chapter():
    names = {}
    (code,) = blocks("A chapter", "python")
    (line,) = blocks("A chapter", "yaml")
    exec(code, names)
    chapter = names["chapter"]
    test_book.RECORD.set_colab_header(chapter)
    for check in (
        test_book.test_code_cells_are_short,
        test_book.test_lines_of_code_fit_on_the_page,
        test_book.test_notebook_has_one_title,
        test_book.test_chapter_opens_with_objectives_hardware_and_run_time,
        test_book.test_chapter_closes_with_summary_and_bibliography,
        test_book.test_every_exercise_has_a_hidden_solution_or_a_check,
    ):
        check(chapter)
    exec(chapter.cells[2].source, names)
    assert abs(names["mask"].nnz - 10_000) < 5 * 100  # as its exercise says
    (entry,) = yaml.safe_load(line)
    assert f'nbformat.write(chapter, "{entry["file"]}.ipynb")' in code


def test_task(registered, tmp_path):
    described, asked = blocks("A task", "yaml")
    (tmp_path / "language.yaml").write_text(described)
    TEMPLATES.update(yaml.safe_load(asked))
    task = read_tasks(LanguageTask, tmp_path / "language.yaml")["Tickets"]
    rows = [{"text": "It fell over.", "label": "fault"}, {"text": "Why?", "label": "question"}]
    for name in task.files.values():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = task.load_examples("validation", tmp_path)
    assert prompt(examples[0]) == ("It fell over.\nThis is a", [" fault", " question"])
    assert task.score(examples, [0, 1]) == {"accuracy": 1.0} and task.score(examples, [0, 0]) == {"accuracy": 0.5}


def test_method(registered):
    names = {}
    for code in blocks("A method", "python"):
        exec(code, names)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method = apply_method(model, "layer_norms")
    assert method.trainable == 8 and method.total == 28
    model(torch.randn(8, 4)).square().sum().backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    assert not torch.equal(model[1].weight, before["1.weight"]) and torch.equal(model[0].weight, before["0.weight"])
    method.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(MethodError, match="Linear has no layer norms"):
        apply_method(nn.Linear(2, 2), "layer_norms")


def test_backend(registered):
    names = {}
    for code in blocks("A backend", "python"):
        exec(code, names)
    inputs, gradients = torch.randn(7, 30), {}
    for backend in ("torch", "columns"):
        torch.manual_seed(0)
        masking = apply_random_mask(nn.Sequential(nn.Linear(30, 20)), ["0"], density=0.2, backend=backend)
        masking.model(inputs).square().sum().backward()
        (values,) = masking.parameters()
        gradients[backend] = values.grad
        assert masking.explain()["backend"].item() == backend
    torch.testing.assert_close(gradients["columns"], gradients["torch"])
