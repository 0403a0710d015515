"""Reports on constructed sweeps with known answers, on a real small one, and the page that comes of it."""

import io
import itertools
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from command_line import call, refused
from docutils import nodes
from docutils.core import publish_doctree
from hypothesis import given
from hypothesis import strategies as st
from myst_parser.parsers.docutils_ import Parser
from scipy.stats import binom
from tiny_sweep import tiny_settings

from rmbook.errors import ConfigError
from rmbook.paper.tables import TEST_IMAGES, TEST_RECORDS, load_paper_table
from rmbook.runs.config import RunConfig
from rmbook.sweeps.best_rate import DIVERGED, best_rate, edge, rank_rates
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.grid import read_grid
from rmbook.sweeps.ledger import STOPPED
from rmbook.sweeps.report import read_runs, summarize
from rmbook.sweeps.report_page import page, text_report
from rmbook.sweeps.state import open_ledger
from rmbook.sweeps.table import sweep_table
from rmbook.sweeps.verdicts import PAPER_MODELS, VERDICTS, compare, standard_error
from rmbook.tasks.catalog import find_task

HUB = {name: model for model, name in PAPER_MODELS.items()}
STAMP = {
    "date": "2026-11-21",
    "hardware": {"cpu": "a|b $x$", "cores": 2, "threads": 1, "gpu": None},
    "commit": "c0ffee",
}
STAMP |= {"versions": {"torch": "2.13"}, "command": "rmbook train"}


def run(dev=0.5, test=0.5, *, loss=1.0, state="done", note="", train=1000, records=None, local=False, **settings):
    """A run as the ledger has it, and what its result says of records."""
    settings = {"model": HUB["OPT-125m"], "task": "SST-2", "learning_rate": 1e-3, "method": "lora"} | settings
    config, ended = RunConfig(**settings), state in ("done", "diverged")
    task = find_task(config.task)
    summary = {"trainable": 10, "total": 100, "ratio": 0.1, "cut_prompts": 0, "steps": 5, "best_epoch": 1}
    summary |= {"epochs_finished": 5, "train_loss": 1.0, "dev_loss": loss, "dev_accuracy": dev}
    summary |= {"test": {task.metric: test}}
    row = {"key": config.digest(), "config": config.to_dict(), "result": summary if ended else None, "state": state}
    row |= {"identity": {"data": "d", "weights": "w", "code": "c"}, "error": note}
    counts = (train, TEST_RECORDS[task.name] if records is None else records) if ended else (None, None)
    return row, counts, local


def frame(runs) -> pd.DataFrame:
    """Runs as `read_runs` gives them."""
    table = sweep_table([row for row, _, _ in runs])
    for name, values in {
        "note": {row["key"]: row["error"] for row, _, _ in runs},
        "local": {row["key"]: local for row, _, local in runs},
        "train_records": {row["key"]: counts[0] for row, counts, _ in runs},
        "test_records": {row["key"]: counts[1] for row, counts, _ in runs},
    }.items():
        table[name] = table["run"].map(values)
    return table


def one(runs) -> pd.Series:
    """The report's only row."""
    table = compare(summarize(frame(runs)))
    assert len(table) == 1
    return table.iloc[0]


def seeds(devs, tests, **settings):
    return [run(dev, test, seed=s, **settings) for s, (dev, test) in enumerate(zip(devs, tests, strict=True))]


# ------------------------------------------------------------------------------------------------------------ choosing


def test_the_rate_is_chosen_by_dev_and_never_by_test():
    trap = seeds([0.70, 0.70, 0.70], [0.99, 0.99, 0.99], learning_rate=1e-2)
    best = seeds([0.90, 0.60, 0.75], [0.80, 0.70, 0.90], learning_rate=1e-3)
    low = seeds([0.60, 0.91, 0.60], [0.95, 0.95, 0.95], learning_rate=1e-4)  # has the best single run
    row = one([*trap, *best, *low])
    assert (row["learning_rate"], row["edge"], row["ties"], row["seeds"], row["rates"]) == (1e-3, "", 1, 3, 3)
    assert row["score"] == pytest.approx(80) and row["deviation"] == pytest.approx(10)
    assert row["dev_accuracy"] == pytest.approx(0.75) and (row["runs"], row["finished"], row["missing"]) == (9, 9, "")


@pytest.mark.parametrize(("best", "edge"), [(1e-4, "lowest"), (1e-3, ""), (1e-2, "highest")])
def test_edges_of_the_grid_are_named(best, edge):
    rates = (1e-4, 1e-3, 1e-2)
    assert one([run(0.9 if rate == best else 0.5, learning_rate=rate) for rate in rates])["edge"] == edge
    assert one([run(learning_rate=best)])["edge"] == "only one"
    # A rate that diverged is part of the grid: it was looked beyond.
    beyond = [run(state="diverged", learning_rate=1e30), run(state="diverged", learning_rate=1e-30)]
    assert one([run(learning_rate=best), *beyond])["edge"] == ""


def test_ties_go_to_the_lower_dev_loss_then_to_the_smaller_rate():
    # Sums in another order differ in the last bit, and are a tie all the same.
    first = [run(dev, loss=2.0, learning_rate=1e-4, seed=s) for s, dev in enumerate((0.1, 0.2, 0.3))]
    second = [run(dev, loss=1.0, learning_rate=1e-3, seed=s) for s, dev in enumerate((0.3, 0.2, 0.1))]
    third = [run(dev, loss=1.0, learning_rate=1e-2, seed=s) for s, dev in enumerate((0.2, 0.2, 0.2))]
    row = one([*third, *first, *second])
    assert (row["learning_rate"], row["ties"]) == (1e-3, 3)


@pytest.mark.parametrize("task", ["SQuAD", "ReCoRD"])
def test_tasks_without_accuracy_choose_by_dev_loss(task):
    better, worse = run(None, 0.3, loss=0.5, task=task), run(None, 0.9, loss=0.6, task=task, learning_rate=1e-2)
    row = one([worse, better])
    assert row["learning_rate"] == 1e-3 and row["score"] == pytest.approx(30)


def test_a_rate_at_which_a_run_diverged_is_not_chosen_but_counted():
    shaky = [run(0.9, 0.9, learning_rate=1e-2), run(0.9, 0.9, learning_rate=1e-2, seed=1, state="diverged")]
    row = one([*shaky, *seeds([0.6, 0.6], [0.5, 0.7], learning_rate=1e-3)])
    assert (row["learning_rate"], row["diverged"], row["missing"]) == (1e-3, 1, "")
    assert row["score"] == pytest.approx(60)
    row = one(shaky)
    assert math.isnan(row["learning_rate"]) and math.isnan(row["score"])
    assert (row["verdict"], row["reason"]) == ("not comparable", "runs diverged at every learning rate")


@pytest.mark.parametrize(
    ("state", "note", "told"),
    [("pending", "", "pending"), ("pending", f"{STOPPED} 1 of 5", "stopped early"), ("leased", "", "leased")]
    + [("failed", "ConfigError: no", "failed"), ("lost", "", "with its result lost: run the sweep again")],
)
def test_what_is_not_finished_is_named_and_never_averaged(state, note, told):
    whole = seeds([0.6, 0.6, 0.6], [0.7, 0.7, 0.7], learning_rate=1e-3)
    torn = seeds([0.9, 0.9], [0.9, 0.9], learning_rate=1e-2)
    row = one([*whole, *torn, run(seed=2, state=state, note=note, learning_rate=1e-2)])
    assert (row["learning_rate"], row["finished"], row["runs"]) == (1e-3, 5, 6)
    assert row["score"] == pytest.approx(70) and row["missing"] == f"1 {told} (at 0.01)"
    assert row["verdict"] == "not comparable" and row["reason"].startswith("incomplete")
    assert "not comparable, incomplete" in text_report(pd.DataFrame([row]))
    row = one([*torn, run(seed=2, state=state, note=note, learning_rate=1e-2)])
    assert math.isnan(row["learning_rate"]) and math.isnan(row["score"])


def test_a_rate_that_was_planned_with_fewer_seeds_takes_no_part():
    row = one([run(0.9, learning_rate=1e-2), *seeds([0.6, 0.6], [0.5, 0.5], learning_rate=1e-3)])
    assert row["learning_rate"] == 1e-3 and row["missing"] == "not all seeds planned (at 0.01)"


def test_runs_that_differ_in_other_settings_are_not_mixed():
    runs = [run(0.9, learning_rate=rate, epochs=n) for rate in (1e-3, 1e-2) for n in (3, 5)]
    runs += [run(0.9, method="random_masking", ratio=1e-3), run(0.9, method="random_masking", density=1e-3)]
    table = summarize(frame(runs))
    assert list(table["extra"]) == ["epochs 3", "epochs 5", "", ""] and list(table["rates"]) == [2, 2, 1, 1]


SCORE = st.tuples(st.floats(0, 1), st.floats(0, 10))


@given(st.dictionaries(st.floats(1e-9, 1e9), st.lists(SCORE, min_size=1, max_size=3), min_size=1, max_size=8))
def test_the_order_of_rates_is_a_law(scores):
    def means(which):
        return {rate: round(sum(score[which] for score in seeds) / len(seeds), 12) for rate, seeds in scores.items()}

    ranked = rank_rates(scores)
    assert sorted(ranked) == sorted(scores) and rank_rates(dict(reversed(scores.items()))) == ranked
    assert means(0)[ranked[0]] == max(means(0).values()) and best_rate(scores) == ranked[0]
    without = {rate: [(None, loss) for _, loss in seeds] for rate, seeds in scores.items()}
    assert means(1)[rank_rates(without)[0]] == min(means(1).values())
    for diverged in ((1.0, math.nan), (None, None), DIVERGED):
        assert rank_rates(scores | {5e9: [(1.0, 0.0), diverged]})[-1] == 5e9
        assert best_rate({5e9: [diverged]}) is None
    assert edge(ranked[0], ranked) == ("only one" if len(ranked) == 1 else edge(ranked[0], sorted(ranked)))
    if len(ranked) > 1:
        assert (edge(min(ranked), ranked), edge(max(ranked), ranked)) == ("lowest", "highest")


def test_the_rule_needs_no_heavy_library():
    code = "import sys, rmbook.sweeps.best_rate; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_the_verdict_is_two_standard_errors_of_the_difference():
    """OPT-125m, LoRA, SST-2: the paper has 86.5 (table 5)."""
    paper = load_paper_table(5).set_index(["model", "method", "task"])["score"].loc[("OPT-125m", "lora", "SST-2")]
    for shift, verdict in ((0, "agrees"), (-3.5, "agrees"), (-5, "below"), (5, "above")):
        mean = (paper + shift) / 100
        row = one(seeds([0.5] * 3, [mean - 0.01, mean, mean + 0.01]))
        q = (872 * mean + 2) / 876
        error = math.sqrt(1 / 3 + 1e4 * q * (1 - q) / 872)
        assert row["tolerance"] == pytest.approx(2 * math.sqrt(2) * error)
        assert row["difference"] == pytest.approx(shift) and row["verdict"] == verdict
        assert (abs(shift) <= row["tolerance"]) == (verdict == "agrees")


@pytest.mark.parametrize(("task", "share"), [("CB", 0.7), ("CB", 0.95), ("COPA", 0.6), ("WSC", 0.635), ("CB", 1.0)])
def test_equal_methods_are_seldom_told_apart(task, share):
    """All pairs of test scores that two equal methods can have, each with its probability."""
    count, apart = TEST_RECORDS[task], 0.0
    probability = binom.pmf(range(count + 1), count, share)
    for mine, theirs in itertools.product(range(count + 1), repeat=2):
        error = standard_error(100 * mine / count, 0.0, 3, count)
        if abs(mine - theirs) * 100 / count > 2 * math.sqrt(2) * error:
            apart += probability[mine] * probability[theirs]
    assert apart < 0.08


def test_a_sweep_with_the_papers_own_numbers_agrees_everywhere():
    frames = [load_paper_table(number) for number in (4, 5, 8)]
    paper = pd.concat(frames).query("task != 'Avg'")
    runs = []
    for row in paper.to_dict("records"):
        masks = {"ratio": row["ratio"]} if row["method"].endswith("_masking") else {}
        places = {"model": HUB[row["model"]], "task": row["task"], "method": row["method"]} | masks
        runs += seeds([0.5] * 3, [row["score"] / 100] * 3, **places)
    table = compare(summarize(frame(runs)))
    assert len(table) == len(paper) and set(table["verdict"]) == {"agrees"}
    assert table["difference"].abs().max() < 1e-9
    rates = pd.concat(load_paper_table(number) for number in (4, 6, 7, 9)).query("task != 'Avg'")
    assert sorted(table["paper_learning_rate"].dropna()) == sorted(rates["learning_rate"].dropna())


def test_training_on_all_records_stands_beside_table_3():
    paper = load_paper_table(3).iloc[0]
    everything = {"method": paper["method"], "task": paper["task"], "train_size": 1_000_000}
    row = one(seeds([0.5] * 3, [paper["score"] / 100] * 3, train=66_849, **everything))
    assert (row["verdict"], row["paper"]) == ("agrees", paper["score"]) and math.isnan(row["paper_learning_rate"])
    part = everything | {"train_size": 5000}
    assert "5000" in one(seeds([0.5] * 3, [0.9] * 3, train=5000, **part))["reason"]


def image_runs(paper, tests=None, **changes):
    """Runs in the settings of the grid table2, with the scores of a row of table 2."""
    fixed, masks = read_grid("table2")["fixed"], {}
    if paper["method"] == "random_masking":
        masks = {"ratio": paper["ratio"]}
    places = {"task": paper["task"], "method": paper["method"], "targets": None if paper["method"] == "full" else "mlp"}
    settings = {"train": 40_000, "records": TEST_IMAGES[paper["task"]]} | fixed | places | masks | changes
    return seeds([0.5] * 3, tests or [paper["score"] / 100] * 3, **settings)


def test_images_stand_beside_table_2():
    paper = load_paper_table(2).to_dict("records")
    table = compare(summarize(frame([run for row in paper for run in image_runs(row)])))
    assert len(table) == len(paper) == 25 and set(table["verdict"]) == {"agrees"}
    assert table["difference"].abs().max() < 1e-9
    assert sorted(table["paper_learning_rate"]) == sorted(row["learning_rate"] for row in paper)
    text = page(table, [], "s", "c")
    scores = [cells(found) for found in parsed(text).findall(nodes.table)][1]
    assert set(scores[0][1:]) == set(TEST_IMAGES) and len(scores) == 6
    row = compare(summarize(frame(image_runs(paper[0], tests=[0.979, 0.98, 0.981])))).iloc[0]
    q = (10_000 * 0.98 + 2) / 10_004
    assert row["tolerance"] == pytest.approx(2 * math.sqrt(2) * math.sqrt(0.1**2 / 3 + 1e4 * q * (1 - q) / 10_000))
    assert row["verdict"] == "below"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_steps": None}, "max_steps None, the paper's 2000"),
        ({"schedule": "constant"}, "schedule constant, the paper's cosine"),
        ({"warmup_steps": 0}, "warmup_steps 0"),
        ({"batch_size": 8}, "batch_size 8, the paper's 128"),
        ({"weight_decay": 0.0}, "weight_decay 0.0"),
        ({"targets": None}, "targets None, the paper's mlp"),
        ({"epochs": 5}, "5 epochs are 1565 steps"),
        ({"train_size": 1000, "train": 1000}, "train_size 1000 is not all images"),
        ({"records": 1000}, "1000 test examples, the paper's 10000"),
        ({"ratio": 0.05}, "the paper has no such number"),
    ],
)
def test_images_in_other_settings_are_not_compared(changes, reason):
    paper = load_paper_table(2).query("method == 'random_masking' and task == 'CIFAR10'").iloc[0]
    row = compare(summarize(frame(image_runs(paper, **changes)))).iloc[0]
    assert row["verdict"] == "not comparable" and row["reason"].startswith(reason)


NOT = {
    "another model": ({"model": "facebook/opt-350m"}, "the model is not in the paper"),
    "a folder": ({"model": "/m/opt-125m", "local": True}, "the model is a folder: name it with --as"),
    "fewer records": ({"train_size": 240}, "train_size 240"),
    "another batch": ({"batch_size": 16}, "batch_size 16"),
    "another rank": ({"settings": {"rank": 16}}, "settings"),
    "a schedule": ({"schedule": "cosine"}, "schedule cosine"),
    "fewer steps": ({"max_steps": 100}, "max_steps 100"),
    "other targets": ({"targets": "all-linear"}, "targets"),
    "another test set": ({"records": 400}, "400 test examples, the paper's 872"),
    "no such ratio": ({"method": "random_masking", "ratio": 0.3}, "no such number"),
    "a density": ({"method": "random_masking", "density": 1e-3}, "no such number"),
}


@pytest.mark.parametrize("case", NOT)
def test_what_is_not_the_papers_experiment_is_not_compared(case):
    settings, reason = NOT[case]
    row = one(seeds([0.5] * 3, [0.865] * 3, **settings))
    assert row["verdict"] == "not comparable" and reason in row["reason"] and math.isnan(row["tolerance"])


def test_what_leaves_the_outcome_alone_is_compared():
    same = {"mixed_precision": "fp16", "micro_batch_size": 2, "gradient_checkpointing": True, "dev_size": 500}
    assert one(seeds([0.5] * 3, [0.865] * 3, **same))["verdict"] == "agrees"
    row = one(seeds([0.5] * 2, [0.865] * 2))
    assert row["verdict"] == "too few seeds" and row["difference"] == pytest.approx(0)


def test_a_folder_can_be_said_to_hold_one_of_the_papers_models():
    runs = seeds([0.5] * 3, [0.865] * 3, model="/models/mine", local=True)
    summary = summarize(frame(runs))
    assert list(summary["model"]) == ["mine"] and list(compare(summary)["verdict"]) == ["not comparable"]
    found = compare(summary, "OPT-125m").iloc[0]
    assert (found["verdict"], found["paper_model"]) == ("agrees", "OPT-125m")
    with pytest.raises(ConfigError, match="OPT-13b"):
        compare(summary, "OPT-13B")
    with pytest.raises(ConfigError, match="none"):
        compare(summarize(frame([run()])), "OPT-125m")
    two = [*runs, *seeds([0.5], [0.5], model="/models/other", local=True)]
    with pytest.raises(ConfigError, match="mine, other"):
        compare(summarize(frame(two)), "OPT-125m")


# ------------------------------------------------------------------------------------------------------------ the page


def parsed(text: str):
    """The page as MyST sees it with the extensions of this book; any remark of the parser fails."""
    book = yaml.safe_load((Path(__file__).parents[2] / "_config.yml").read_text())
    extensions = [name for name in book["parse"]["myst_enable_extensions"] if name != "linkify"]
    said = io.StringIO()
    settings = {"myst_enable_extensions": extensions, "warning_stream": said, "report_level": 1}
    tree = publish_doctree(text, parser=Parser(), settings_overrides=settings)
    assert said.getvalue() == ""
    return tree


def cells(table: nodes.table) -> list[list[str]]:
    return [[entry.astext() for entry in row.findall(nodes.entry)] for row in table.findall(nodes.row)]


def test_the_page_is_whole_whatever_the_names_are():
    name = "it's `a|b` {{x}} $y$ <i> #1 *"
    runs = seeds([0.5] * 3, [0.865] * 3, local=True, model=f"/m/{name}")
    runs += seeds([0.5] * 3, [0.865] * 3, method="random_masking", ratio=1e-3)
    runs += [run(None, 0.3, task="SQuAD", state="pending")]
    table = compare(summarize(frame(runs)))
    text = page(table, [STAMP, STAMP], name, f"rmbook report '{name}'")
    tree = parsed(text)
    title = next(tree.findall(nodes.title)).astext()
    assert title == f"Sweep {name} beside the paper"
    tables = [cells(found) for found in tree.findall(nodes.table)]
    assert [row[0] for row in tables[0][1:]] == list(VERDICTS)
    assert sum(int(row[1]) for row in tables[0][1:]) == len(table)
    assert all(len(row) == len(found[0]) for found in tables for row in found)
    everything = [row for found in tables for row in found if row[-1] and "method" in found[0]]
    assert any("incomplete" in cell for row in everything for cell in row)
    stamp = dict(tables[-1][1:])
    assert "a|b $x$" in stamp["hardware"] and stamp["date"] == "2026-11-21" and "c0ffee" in stamp["commit"]
    assert stamp["this page"] == f"rmbook report '{name}'"


def test_a_line_break_in_a_name_stays_within_its_cell():
    name = "x\n\n<script>alert(1)</script>\n\n# y\u2028\x85z"
    text = page(compare(summarize(frame([run()]))), [STAMP, {}], name, f"rmbook report {shlex.quote(name)}")
    tree = parsed(text)
    assert not list(tree.findall(nodes.raw)) and "\n<script>" not in text
    (title, *_), tables = tree.findall(nodes.title), [cells(found) for found in tree.findall(nodes.table)]
    assert title.astext() == "Sweep x <script>alert(1)</script> # y z beside the paper"
    assert r"x\n\n<script>alert(1)</script>" in dict(tables[-1][1:])["this page"]


def test_the_paper_layout_has_a_row_a_method_and_a_column_a_task():
    tasks, methods = ("RTE", "SST-2"), ({"method": "random_masking", "ratio": 1e-3}, {"method": "full"})
    runs = [r for task in tasks for m in methods for r in seeds([0.5] * 3, [0.5, 0.5, 0.53], task=task, **m)]
    tree = parsed(page(compare(summarize(frame(runs))), [], "s", "c"))
    scores, differences, rates = [cells(found) for found in tree.findall(nodes.table)][1:4]
    assert scores[0] == ["method", "SST-2", "RTE"] and [row[0] for row in scores[1:]] == [
        "full",
        "random_masking ratio 0.001",
    ]
    assert scores[1] == ["full", "51.0 ± 1.7 (88.1)", "51.0 ± 1.7 (63.5)"]
    assert differences[1] == ["full", "-37.1 below", "-12.5 below"] and rates[1][1] == "0.001 only one (1e-05)"


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A real one: two methods, two rates and one that diverges, two seeds."""
    folder = tmp_path_factory.mktemp("report")
    fixed = tiny_settings(folder, epochs=1, train_size=16)
    what = [{"method": "lora"}, {"method": "random_masking", "ratio": 1e-2}]
    grid = {"fixed": fixed, "axes": {"what": what, "learning_rate": [1e-2, 1e-3, 1e30], "seed": [0, 1]}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    answer = call("sweep", "run", folder / "grid.yaml", "--output", folder / "sweep", "--quiet")
    assert answer.exit_code == 0, answer.output
    return folder / "sweep"


def test_the_command_reports_what_the_runs_say(sweep, tmp_path):
    output, csv = tmp_path / "page.md", tmp_path / "table.csv"
    answer = call("report", sweep, "--output", output, "--csv", csv)
    assert answer.exit_code == 0, answer.output
    assert "2 not comparable" in answer.stdout and "the model is a folder" in answer.stdout
    found, runs = pd.read_csv(csv), sweep_table(open_ledger(SweepFolder(sweep)).rows())
    assert list(found["method"]) == ["lora", "random_masking"] and list(found["diverged"]) == [2, 2]
    for _, row in found.iterrows():
        mine = runs[(runs["method"] == row["method"]) & (runs["state"] == "done")]
        means = mine.groupby("learning_rate")[["dev_accuracy", "dev_loss", "accuracy"]].mean()
        order = means.assign(worse=-means["dev_accuracy"]).sort_values(["worse", "dev_loss"])
        assert row["learning_rate"] == order.index[0] and row["score"] == pytest.approx(100 * order["accuracy"].iloc[0])
        assert (row["test_records"], row["train_records"], row["finished"]) == (20, 16, 6)
    text = output.read_text()
    tables = [cells(table) for table in parsed(text).findall(nodes.table)]
    stamp = dict(tables[-1][1:])
    assert stamp["this page"] == "rmbook report sweep --output page.md" and "torch" in stamp["versions"]
    assert str(sweep.parent) not in text and str(tmp_path) not in text
    call("report", sweep, "--output", output)
    assert output.read_text() == text  # whenever it is made
    said = call("report", sweep, "--as", "OPT-125m").stdout
    assert "tiny as OPT-125m" in said and re.search(r"epochs 1, the paper's 5", said)


def test_reports_on_what_is_not_there_are_one_line(sweep, tmp_path):
    kept = tmp_path / "page.md"
    kept.write_text("mine")
    refused(call("report", tmp_path / "nothing"), "sweep run")
    refused(call("report", sweep, "--as", "OPT-125M"), "OPT-125m")
    refused(call("report", sweep, "--output", tmp_path / "page.html"), ".md")
    refused(call("report", sweep, "--csv", tmp_path / "table.txt"), ".csv")
    refused(call("report", sweep, "--output", kept, "--csv", tmp_path / "no" / "table.csv"), "does not exist")
    refused(call("report", sweep, "--output", kept, "--as", "BERT"), "BERT")
    SweepFolder(tmp_path / "empty", new=True)
    refused(call("report", tmp_path / "empty"), "no runs")
    assert kept.read_text() == "mine" and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "page.md"]
    assert "  rmbook report " in call("report", "--help").stdout


@pytest.mark.parametrize("broken", ["--output", "--csv"])
def test_a_report_writes_both_of_its_files_or_none(broken, sweep, tmp_path):
    files = {"--output": tmp_path / "page.md", "--csv": tmp_path / "table.csv"}
    (files[broken] / "inside").mkdir(parents=True)
    answer = call("report", sweep, *(word for flag, path in files.items() for word in (flag, path)))
    assert answer.exit_code == 2 and answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [files[broken].name]
    assert [path.name for path in files[broken].iterdir()] == ["inside"]


def test_nothing_is_written_by_looking(sweep, tmp_path):
    """This holds for a folder of which the ledger is lost, too."""
    folder = shutil.copytree(sweep, tmp_path / "sweep")
    said = [call(*command).stdout for command in looks(folder, tmp_path)]
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    shutil.rmtree(folder / "work")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    answers = [call(*command) for command in looks(folder, tmp_path)]
    assert [answer.exit_code for answer in answers] == [0, 0, 0] and [answer.stdout for answer in answers] == said
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def looks(folder, beside):
    return (("sweep", "status", folder), ("report", folder), ("sweep", "export", folder, "--csv", beside / "t.csv"))


def test_a_lost_result_is_not_counted(sweep, tmp_path):
    folder = shutil.copytree(sweep, tmp_path / "sweep")
    runs, stamps = read_runs(folder)
    assert len(stamps) == 12
    gone = runs[(runs["state"] == "done")]["run"].iloc[0]
    shutil.rmtree(folder / "runs" / gone)
    runs, stamps = read_runs(folder)
    assert len(stamps) == 11 and list(runs.loc[runs["run"] == gone, "state"]) == ["lost"]
    assert "1 with its result lost" in " ".join(summarize(runs)["missing"])
