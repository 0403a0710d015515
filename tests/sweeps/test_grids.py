"""Grids become the same runs each time, and a run is known by what its outcome depends on."""

import itertools
import json
import shutil

import pytest
import yaml
from command_line import call, refused

from rmbook.errors import ConfigError
from rmbook.offline.made import SENTENCES
from rmbook.offline.sentences import write_generated_examples
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.paper.tables import load_paper_table
from rmbook.runs.config import RunConfig
from rmbook.runs.fingerprints import plan_run
from rmbook.stamps import reachable_sources, source_fingerprint
from rmbook.sweeps.grid import SAME_RUNS, expand, override, plan, read_grid, ready_made

BASE = {"model": "a/b", "task": "RTE", "ratio": 1e-3}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_generated_examples(folder / "data", **SENTENCES)
    make_tiny_checkpoint(folder / "tiny", pretrain_steps=0)
    return folder


def test_all_combinations_the_last_axis_fastest_without_those_left_out():
    axes = {"task": ["RTE", "CB"], "learning_rate": [1e-2, 1e-3], "seed": [0, 1]}
    runs = expand({"fixed": BASE, "axes": axes, "except": [{"task": "CB", "learning_rate": 1e-2}]})
    found = [(run.task, run.learning_rate, run.seed) for run in runs]
    wanted = list(itertools.product(["RTE", "CB"], [1e-2, 1e-3], [0, 1]))
    assert found == [entry for entry in wanted if entry[:2] != ("CB", 1e-2)]


def test_an_axis_of_mappings_sets_several_settings_and_equal_runs_come_once():
    what = [{"method": "lora", "ratio": None, "settings": {"rank": 2}}, {"ratio": 1e-2}, {"ratio": 0.01}]
    runs = expand({"fixed": BASE | {"learning_rate": 1}, "axes": {"what": what, "seed": [0, 1]}})
    assert [(run.method, run.ratio, run.settings) for run in runs[::2]] == [
        ("lora", None, {"rank": 2}),
        ("random_masking", 1e-2, {}),
    ]
    ranks = expand({"fixed": BASE | {"learning_rate": 1, "method": "lora", "ratio": None},
                    "axes": {"settings": [{"rank": 2}, {"rank": 4}]}})  # fmt: skip
    assert [run.settings["rank"] for run in ranks] == [2, 4]


def test_values_from_the_command_line_replace_fixed_ones_and_axes():
    grid = {"fixed": BASE, "axes": {"learning_rate": [1, 2], "seed": [0, 1, 2]}}
    changed = override(grid, {"seed": 5, "ratio": [0.1, 0.2], "epochs": 2})
    found = [(run.learning_rate, run.ratio, run.seed, run.epochs) for run in expand(changed)]
    assert found == [(1, 0.1, 5, 2), (1, 0.2, 5, 2), (2, 0.1, 5, 2), (2, 0.2, 5, 2)]
    with pytest.raises(ConfigError, match="axis what"):
        override({"axes": {"what": [{"ratio": 0.1}]}}, {"ratio": 0.2})


@pytest.mark.parametrize(
    ("grid", "part"),
    [
        ({"axis": {}}, "axes"),
        ({"axes": {"seed": 3}}, "list"),
        ({"axes": {"seed": []}}, "seed"),
        ({"axes": {"learning_rat": [1]}}, "learning_rate"),
        ({"fixed": BASE, "axes": {"what": [{"learning_rat": 1}]}}, "learning_rate"),
        ({"fixed": BASE | {"learning_rate": "fast"}}, "fast"),
        ({"fixed": BASE}, "learning_rate"),
        ({"fixed": BASE | {"learning_rate": 0}}, "positive"),
        ({"fixed": [1]}, "fixed"),
        ({"fixed": 0}, "fixed"),
        ({"axes": []}, "axes"),
        ({"except": {}}, "except"),
        ({"axes": {"seed": [1], "what": [{"ratio": 0.1}, {"seed": 2}]}}, "both set seed"),
        ({"fixed": BASE, "axes": {"seed": list(range(400)), "epochs": list(range(1, 401))}}, "160,000 runs"),
        ({"except": ["RTE"]}, "except"),
        ({"except": [{"tusk": "RTE"}]}, "task"),
        ({"fixed": BASE | {"learning_rate": 1}, "except": [{"task": "RTE"}]}, "no runs"),
        ({"fixed": BASE | {"learning_rate": 1, "model": "made:opd"}}, "made:opt"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(grid, part, tmp_path):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(ConfigError, match=part) as raised:
        expand(read_grid(tmp_path / "grid.yaml"))
    assert "\n" not in str(raised.value)


def test_a_grid_that_is_none(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "torn.yaml").write_text("{")
    (tmp_path / "twice.yaml").write_text("axes:\n  seed: [1]\n  seed: [2]\n")
    sources = {"tabel1": "table1", "list.yaml": "list", "torn.yaml": "YAML", "twice.yaml": "'seed' occurs twice"}
    for source, part in sources.items():
        with pytest.raises(ConfigError, match=part):
            read_grid(tmp_path / source if "." in source else source)
    refused(call("sweep", "run", "tabel1", "--output", tmp_path / "sweep"), "table1")
    command = ("sweep", "run", tmp_path / "grid.yaml", "--output", tmp_path / "sweep", "--allow-runs")
    fixed = "fixed: {model: a, task: RTE, ratio: 1e-3, learning_rate: 1e-2}\n"
    (tmp_path / "grid.yaml").write_text(fixed + "axes: {seed: [0, 1]}")
    refused(call(*command, 1), "2 runs (2 of seed)", "--allow-runs 2")
    assert not (tmp_path / "sweep").exists()


def test_numbers_of_a_file_need_no_point(tmp_path):
    (tmp_path / "grid.yaml").write_text("""
        fixed: {model: a/b, task: RTE, ratio: 1e-3}
        axes: {learning_rate: [1e-2, 1e-05], mixed_precision: [no, bf16]}
        except: [{learning_rate: 1e-2, mixed_precision: no}]
    """)
    runs = expand(read_grid(tmp_path / "grid.yaml"))
    found = [(run.learning_rate, run.mixed_precision) for run in runs]
    assert found == [(1e-2, "bf16"), (1e-5, "no"), (1e-5, "bf16")]


# -------------------------------------------------------------------------------------------------- the ready-made ones


PLACES = {"model": "/somewhere", "data_dir": "/somewhere"}  # instead of what would be made, for which nothing waits


def expanded(name):
    return expand(override(read_grid(name), PLACES if name.endswith("-tiny") else {}))


def test_ready_made_grids_expand_and_say_what_they_are():
    names = ready_made()
    assert all(read_grid(name) == read_grid(other) for name, other in SAME_RUNS.items())
    figures = [f"fig{number}" for number in ("1", "3", "4a", "4b", "4c", *range(5, 12))]
    for name in [*(f"table{number}" for number in range(1, 10)), *figures]:
        assert {name, f"{name}-tiny"} <= names.keys(), name
    for name in names.keys() - SAME_RUNS.keys():
        assert f"{len(expanded(name)):,} runs" in names[name], name


@pytest.mark.parametrize(("name", "number"), [("table5", 5), ("table4", 4), ("table3", 3), ("table2", 2)])
def test_grids_of_tables_hold_what_the_tables_hold(name, number):
    """Each cell of the paper's table has its runs, and no run is without a cell."""
    paper = load_paper_table(number)
    paper = paper[paper["task"] != "Avg"]
    masks = paper["method"] == "random_masking"
    cells = set(zip(paper["model"], paper["task"], paper["method"], paper["ratio"].where(masks, 0.0), strict=True))
    names = {f"facebook/{name.lower()}": name for name in set(paper["model"])}
    names |= {"meta-llama/Llama-2-7b-hf": "Llama-2-7b", "openai/clip-vit-base-patch16": "CLIP-ViT-B/16"}
    runs = expand(read_grid(name))
    assert {(names[run.model], run.task, run.method, run.ratio or 0.0) for run in runs} == cells
    assert {run.seed for run in runs} == {0, 1, 2}
    if number in (2, 4):  # the best of the search are among those searched
        assert set(paper["learning_rate"].astype(float)) <= {run.learning_rate for run in runs}


@pytest.mark.parametrize("name", [name for name in ready_made() if name.endswith("-tiny") and name not in SAME_RUNS])
def test_a_grid_in_small_has_the_methods_of_the_large_one(name):
    small, large = (expanded(grid) for grid in (name, name.removesuffix("-tiny")))
    # table 8 in small has random masks beside the structured ones, which in large are those of table 5
    beside = {"random_masking"} if name == "table8-tiny" else set()
    assert {run.method for run in small} == {run.method for run in large} | beside
    assert {run.targets for run in small} == {run.targets for run in large}
    settings = ("schedule", "weight_decay")
    assert {tuple(getattr(run, s) for s in settings) for run in small} == {
        tuple(getattr(run, s) for s in settings) for run in large
    }


# ---------------------------------------------------------------------------------------------------------- identity


def config(places, **changes):
    values = {"model": str(places / "tiny"), "task": "SST-2", "data_dir": str(places / "data")}
    return RunConfig(**values | {"learning_rate": 1e-2, "ratio": 1e-2} | changes)


def test_the_identity_is_that_of_contents_not_of_places(places, tmp_path, monkeypatch):
    key = plan_run(config(places)).key
    moved = shutil.copytree(places, tmp_path / "elsewhere")
    assert plan_run(config(moved)).key == key
    for name in ("train.tsv", "dev.tsv"):
        (moved / "data" / "SST-2" / name).rename(moved / "data" / name)
    monkeypatch.chdir(moved)
    assert plan_run(config(moved, model="tiny", data_dir="data")).key == key
    assert plan_run(config(moved, learning_rate=1)).key == plan_run(config(moved, learning_rate=1.0)).key


@pytest.mark.parametrize("what", ["setting", "records", "weights", "tokenizer", "code"])
def test_the_identity_changes_with_all_that_the_outcome_depends_on(what, places, tmp_path):
    moved, changes, code = shutil.copytree(places, tmp_path / "elsewhere"), {}, None
    before = plan_run(config(moved))
    if what == "setting":
        changes = {"dropout": 0.0}
    elif what == "code":
        code = "0.1.0+other"
    else:
        names = {
            "records": "data/SST-2/dev.tsv",
            "weights": "tiny/model.safetensors",
            "tokenizer": "tiny/tokenizer.json",
        }
        path = moved / names[what]
        content = path.read_bytes()
        path.write_bytes(content[:-2] + b"\n\n" if what != "weights" else content[:-1] + bytes([content[-1] ^ 1]))
    assert plan_run(config(moved, **changes), code).key != before.key


def test_all_runs_of_a_grid_differ_and_are_the_same_each_time(places):
    axes = {"learning_rate": [1e-2, 1e-3], "seed": [0, 1, 2], "ratio": [1e-2, 1e-3]}
    fixed = {"model": str(places / "tiny"), "task": "SST-2", "data_dir": str(places / "data")}
    runs = plan(expand({"fixed": fixed, "axes": axes}))
    assert len({run.key for run in runs}) == 12 and runs == plan(expand({"fixed": fixed, "axes": axes}))
    assert json.loads(json.dumps([run.config for run in runs])) == [run.config for run in runs]


def test_code_is_what_a_run_reaches_without_words_about_it(tmp_path):
    package = tmp_path / "rmbook"

    def fingerprint(**modules):
        for name, text in modules.items():
            path = package / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return source_fingerprint("rmbook.runs.run", package=package)

    run = '"""Doc."""\nfrom rmbook.masks import sample\n\n\ndef g():\n    """Doc."""\n    return sample.f()  # so\n'
    first = fingerprint(runs__run=run, masks__sample="def f():\n    return 1\n", plots="x = 1\n")
    assert fingerprint(runs__run=run.replace("Doc.", "Better\n    doc.").replace("# so", "")) == first
    assert fingerprint(plots="x = 2\n") == first
    assert fingerprint(masks__sample="def f():\n    return 2\n") != first
    assert fingerprint(masks__sample="def f():\n    return 1\n") == first
    assert fingerprint(runs__run=run.replace("f()", "f() + 1")) != first


@pytest.mark.parametrize("table, same", [("# better said\nx: 1\n", True), ("x: 2\n", False)])
def test_a_table_beside_a_module_is_part_of_the_code(tmp_path, table, same):
    package = tmp_path / "rmbook"
    (package / "runs").mkdir(parents=True)
    (package / "runs" / "run.py").write_text("")
    hashes = []
    for text in ("x: 1\n", table):
        (package / "runs" / "run.yaml").write_text(text)
        hashes.append(source_fingerprint("rmbook.runs.run", package=package))
    assert (hashes[0] == hashes[1]) == same


def test_the_code_of_a_run_is_most_of_the_package():
    found = reachable_sources("rmbook.runs.run")
    assert len(found) >= 40 and {"rmbook.masks.sample", "rmbook.engine.layer", "rmbook.training.loop"} <= found.keys()
    assert not [name for name in found if name.startswith(("rmbook.sweeps", "rmbook.evidence", "rmbook.cli"))]
