"""Every assert of a chapter about recorded results fails in a world where what it says is false.

The chapters' cells run on results that were broken on purpose. Each part of an assert that is joined by `and` counts
for itself: it holds on the real results, and fails in one broken world at least. So with the runs that a chapter
performs itself: here they learn nothing, or are all alike, or give any number (`make test` performs the real ones).
"""

import ast
import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from broken_chapters import BOOK, LIVE, LOADERS, Chapter, Parts, code_cells, names_in

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.experiment import Experiment
from rmbook.evidence.recording import load_recorded

SETTINGS = {"method", "density", "learning_rate", "seed", "backbone", "choice", "scale", "start", "train_size", "base",
            "mask_seed", "model", "task", "ratio", "hessian", "view", "masks", "steps"}  # fmt: skip
PERFORMED = "run_experiment("
OTHERWISE_LIVE = re.compile(r"(?<!\.)\b(train|start_run|learn_task|hessian_norm|load_minilm|apply_\w+|run)\(")
CHAPTERS = [path.stem for path in sorted(BOOK.glob("*.ipynb")) if LOADERS.search(path.read_text())]
# Their live runs are those of `run_experiment`, seen by their numbers alone.
LIVE_CHAPTERS = ["bigger_steps", "how_much_data", "it_is_the_pretraining", "small_steps_long_walks"]


def measured(table: pd.DataFrame) -> list[str]:
    """Return the columns of what was measured; in the paper's tables of rates, that is the best rate."""
    settings = SETTINGS | {name for name in table if isinstance(table[name].iloc[0], list) and name == "views"}
    return [name for name in table if name not in settings] or ["learning_rate"]


def dealt(table: pd.DataFrame, order: np.ndarray) -> pd.DataFrame:
    """Return the table in which row i has the results of row order[i]."""
    return table.assign(**{name: table[name].to_numpy()[order] for name in measured(table)})


def shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the results dealt out to the runs at random."""
    return dealt(table, np.random.default_rng(seed).permutation(len(table)))


def score_of(table: pd.DataFrame) -> str:
    return next(name for name in ("dev_accuracy", "score", *measured(table)) if name in table)


def opposite(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results of the worst run for the best one, and so on."""
    order = table[score_of(table)].argsort().to_numpy()
    ranks = np.empty_like(order)
    ranks[order] = order[::-1]
    return dealt(table, ranks)


def in_order(table: pd.DataFrame, best_first: bool) -> pd.DataFrame:
    """Return the best results for the first runs, or for the last."""
    order = table[score_of(table)].argsort().to_numpy()
    return dealt(table, order[::-1] if best_first else order)


def alike(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results of one run for all runs, and each curve or group of numbers as its mean: nothing matters."""
    same = dealt(table, np.full(len(table), len(table) // 2))
    groups = [name for name in measured(table) if isinstance(same[name].iloc[0], list | dict)]
    means = {name: float(np.mean(leaves(same[name].iloc[0]))) for name in groups}
    return same.assign(**{name: [levelled(group, means[name]) for group in table[name]] for name in groups})


def leaves(group: list | dict | float) -> list[float]:
    """Return the numbers in a group of numbers, or of groups of them."""
    if not isinstance(group, list | dict):
        return [group]
    return [leaf for part in (group.values() if isinstance(group, dict) else group) for leaf in leaves(part)]


def levelled(group: list | dict | float, mean: float) -> list | dict | float:
    """Return a group of the same form with one number in all places."""
    if isinstance(group, dict):
        return {name: levelled(part, mean) for name, part in group.items()}
    return [levelled(part, mean) for part in group] if isinstance(group, list) else mean


def exaggerated(table: pd.DataFrame) -> pd.DataFrame:
    """Return results three times as far from their mean."""
    names = [name for name in measured(table) if table[name].dtype == float]
    return table.assign(**{name: table[name].mean() + 3 * (table[name] - table[name].mean()) for name in names})


def diverging(table: pd.DataFrame) -> pd.DataFrame:
    """Return the same runs, of which every third ended as NaN before its first epoch did."""
    hit = np.arange(len(table)) % 3 == 0
    ended = {"status": "diverged", "dev_accuracy": 0.0, "dev_loss": None, "best_epoch": 0}
    return table.assign(**{name: table[name].mask(hit, value) for name, value in ended.items() if name in table})


def outlying(table: pd.DataFrame) -> pd.DataFrame:
    """Return the same results, but those of the first three runs are half as large."""
    names = [name for name in measured(table) if table[name].dtype == float]
    return table.assign(**{name: table[name].where(np.arange(len(table)) > 2, table[name] / 2) for name in names})


def fewer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first third of the runs: the rest was lost."""
    return table.iloc[: len(table) // 3].copy()


def one_less(table: pd.DataFrame) -> pd.DataFrame:
    """Return all runs but the last."""
    return table.iloc[:-1].copy()


def mislabelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with learning rates and scales that they did not have."""
    changes = {"learning_rate": 10 * table["learning_rate"]} if "learning_rate" in table else {}
    return table.assign(**changes | ({"scale": 2.0} if "scale" in table else {}))


def lost(table: pd.DataFrame) -> pd.DataFrame:
    """Raise, as if there were no results at all."""
    raise FileNotFoundError


WORLDS = [partial(shuffled, seed=0), alike, opposite, exaggerated, outlying, diverging, fewer, one_less, mislabelled]
WORLDS += [partial(in_order, best_first=True), partial(in_order, best_first=False)]
WORLDS += [partial(shuffled, seed=seed) for seed in (1, 2, 3)]


class Broken:
    """A loader whose results are broken: a table, a tuple with tables, a mapping with runs or with accuracies."""

    def __init__(self, load: Callable, world: Callable | None):
        self.load, self.world = getattr(load, "load", load), world

    def __call__(self, *arguments):
        found = self.load(*arguments)
        return found if self.world is None else self.change(found)

    def change(self, content):
        if isinstance(content, pd.DataFrame):
            changed = self.world(content)
            changed.attrs = content.attrs
            return changed
        if isinstance(content, tuple):
            return tuple(self.change(part) for part in content)
        if "runs" in content:
            runs = self.world(pd.DataFrame(content["runs"]).astype(object)).to_dict("records")
            return content | {"runs": runs, "zero_shot": content["zero_shot"] / 2}
        return content | {"base": {name: value / 2 for name, value in content["base"].items()}}


def without(chapter: str, but: re.Pattern = LIVE) -> list[tuple[str, str]]:
    """Return the cells that train nothing, or none of those that match, as their ids and their code."""
    return [(name, text) for name, text in code_cells(chapter) if not but.search(text)]


def run(
    cells: list[tuple[str, str]], around: dict, world: Callable | None, performed: dict[str, Callable] | None = None
) -> tuple[dict, list[tuple[str, str]]]:
    """Run cells; return for each part of an assert whether it held, and the cells that broke off.

    What needs a name that a live cell made says nothing. Where a cell breaks off otherwise in a broken world, those
    asserts have failed that it does not reach.
    """
    found, ended = {}, []
    for cell, code in cells:
        parts, answered = Parts(), {}
        tree = ast.fix_missing_locations(parts.visit(ast.parse(code)))

        def note(text: str, question: Callable, to: dict = answered) -> None:
            with contextlib.suppress(NameError):
                to[text] = bool(np.all(question())) and to.get(text, True)

        around["note"] = note
        for name in [name for name in around if LOADERS.match(f"{name}(")]:
            around[name] = Broken(around[name], world)
        around |= {name: replacement for name, replacement in (performed or {}).items() if name in around}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(tree, cell, "exec"), around)
        except Exception as error:
            ended.append((cell, code))
            if world is not None and not isinstance(error, NameError):
                answered = dict.fromkeys(parts.texts, False) | answered
        finally:
            plt.close("all")
        found |= {(cell, text): right for text, right in answered.items()}
    return found, ended


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_asserts_about_recorded_results_can_fail(chapter):
    matplotlib.use("agg")
    independent = {"display": lambda *_: None}
    _, dependent = run(without(chapter), independent, lost)  # on results, or on what live cells make
    needed = Chapter(chapter).needed({cell for cell, code in dependent if re.search(r"^\s*assert ", code, re.M)})
    dependent = [(cell.name, cell.code) for cell in needed if (cell.name, cell.code) in dependent]  # without figures
    held, _ = run(dependent, dict(independent), None)
    asked = {(cell, text) for cell, text in held if names_in(text)}
    assert all(held.values()), [text for text, right in held.items() if not right]
    for world in WORLDS:
        if asked:
            answers, _ = run(dependent, dict(independent), world)
            asked -= {text for text, right in answers.items() if not right}
    assert not asked, "\n".join(f"{cell}: {text}" for cell, text in sorted(asked))


def performed(accuracy: Callable[[], float], distance: Callable[[], float]) -> Callable:
    """Return a `run_experiment` that runs nothing: it gives back the untrained model, with numbers from nowhere."""
    template = load_recorded("science/vit_grid")["runs"][0]

    def run_experiment(asked: Experiment, keep_model: bool = False):
        named = {name: value for name, value in asdict(asked).items() if value is not None and name != "steps"}
        found = template | named | {"train_size": asked.train_size or 400, "distance": distance()}
        found |= {"dev_accuracy": accuracy(), "test_accuracy": accuracy(), "curve": [accuracy() for _ in range(8)]}
        return (found, load_backbone(asked.backbone).model()) if keep_model else found

    return run_experiment


def numbers(seed: int, least: float = 0.0) -> tuple[Callable, Callable]:
    random = np.random.default_rng(seed)
    return lambda: random.uniform(least, 100), lambda: random.uniform(0, 50)


LIVE_WORLDS = [(lambda: 33.0, lambda: 0.0), (lambda: 90.0, lambda: 20.0), numbers(0, 97.0)]  # still, alike, too good
LIVE_WORLDS += [numbers(seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("chapter", LIVE_CHAPTERS)
def test_asserts_about_live_runs_can_fail(chapter):
    matplotlib.use("agg")
    around = {"display": lambda *_: None}
    held, dependent = run(without(chapter), around, None)  # on what live cells make
    cells = [(n, code) for n, code in without(chapter, OTHERWISE_LIVE) if n in dict(dependent) or PERFORMED in code]
    asked, failed = set(), set()
    for world in LIVE_WORLDS:
        answers, _ = run(cells, dict(around), None, {"run_experiment": performed(*world)})
        asked |= answers.keys() - held.keys()
        failed |= {text for text, right in answers.items() if not right}
    assert asked and asked <= failed, "\n".join(f"{cell}: {text}" for cell, text in sorted(asked - failed))
