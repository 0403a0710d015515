"""Chapters of experiments with RMBOOK_BACKBONE set: all their cells run, in order, on a language model."""

import dataclasses
from functools import cache
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from huggingface_hub import constants

import rmbook
from rmbook.evidence import backbones
from rmbook.evidence import experiment as experiments
from rmbook.offline.tiny_language import make_tiny_checkpoint

BOOK = Path(__file__).resolve().parents[2] / "book"
RUNS = {  # how often a chapter trains the reader's model
    "bigger_steps": 11,
    "does_randomness_matter": 6,
    "flatter_networks": 1,
    "further_away": 10,
    "how_much_data": 6,
    "it_is_the_pretraining": 2,
    "one_learning_rate": 4,
    "small_steps_long_walks": 4,
}
SIZES = {"train": 128, "dev": 8, "test": 8}


def code(chapter: str) -> list[str]:
    """The sources of a chapter's code cells, without the one that installs the package on Colab."""
    cells = nbformat.read(BOOK / f"{chapter}.ipynb", as_version=4).cells
    kept = (c for c in cells if c.cell_type == "code" and "colab-header" not in c.metadata.get("tags", ()))
    return [cell.source for cell in kept]


@pytest.fixture(scope="module")
def load_tiny(tmp_path_factory):
    """`load_backbone`, which gives a tiny OPT a tiny protocol, and the name of that."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "opt", pretrain_steps=0)
    load, name = backbones.load_backbone, str(folder)

    @cache
    def load_tiny(asked: str = "vit", base: int = 0):
        whole = load(asked, base)
        if asked != name:
            return whole
        data = {split: whole.data[split][:size] for split, size in SIZES.items()}
        return dataclasses.replace(whole, data=data, train_size=8, batch_size=8, steps=2)

    yield load_tiny, name
    load.cache_clear()


@pytest.fixture
def trained(load_tiny, tmp_path, monkeypatch):
    """The types of models that were trained, one a run, where RMBOOK_BACKBONE is a tiny OPT."""
    load, name = load_tiny
    for variable, value in {"BACKBONE": name, "RECORDS": "generated", "CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(f"RMBOOK_{variable}", value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for module in (backbones, experiments):
        monkeypatch.setattr(module, "load_backbone", load)
    train, epochs, kinds = rmbook.train, experiments.epochs, []

    def counted(model, *arguments, **settings):
        kinds.append(model.config.model_type)
        return train(model, *arguments, **settings)

    for module in (rmbook, experiments):
        monkeypatch.setattr(module, "train", counted)

    def fewer(backbone, steps, examples):  # where a chapter asks for hundreds of steps itself
        return epochs(backbone, steps and max(1, steps // 50), examples)

    monkeypatch.setattr(experiments, "epochs", fewer)
    return kinds


def test_the_chapters_are_all_that_read_the_name_of_a_backbone():
    chapters = [path.stem for path in sorted(BOOK.glob("*.ipynb"))]
    assert [chapter for chapter in chapters if "RMBOOK_BACKBONE" in "".join(code(chapter))] == list(RUNS)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("chapter", RUNS)
def test_a_chapter_runs_on_a_language_model(chapter, trained):
    matplotlib.use("Agg")
    names = {"display": print}
    try:
        for number, source in enumerate(code(chapter), 1):
            exec(compile(source, f"{chapter}.ipynb, code cell {number}", "exec"), names)
    finally:
        plt.close("all")
    assert trained == RUNS[chapter] * ["opt"]
