"""What README says can be done, can be done: its Python runs, its commands and flags exist, its paths are there."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from command_line import call
from transformers import AutoModelForSequenceClassification

import rmbook
from rmbook.cli.app import app
from rmbook.offline.tiny_language import make_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
INLINE = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
UsageError = typer.BadParameter.__base__  # click's, wherever this version of typer keeps it
COMMANDS = typer.main.get_command(app)
SMALL = ["--train-size", "48", "--dev-size", "12", "--test-size", "20", "--epochs", "1", "--quiet"]


def shell_lines() -> list[str]:
    """The lines of all shell blocks, those that end with a backslash joined with the next."""
    code = "".join(code for language, code in BLOCKS if language == "sh").replace("\\\n", " ")
    return [line for line in code.splitlines() if line.strip()]


def rmbook_arguments(line: str) -> list[str] | None:
    """What stands after `rmbook` in a command; None for a command of another program."""
    words = shlex.split(line, comments=True)
    if "rmbook" not in words[:1] and words[:2] != ["accelerate", "launch"]:
        return None
    return words[words.index("rmbook") + 1 :]


def parse(arguments: list[str]) -> None:
    """Parse the arguments of `rmbook` without running anything.

    Where dots stand for what is left out, only the names of the flags are looked up.

    Raises:
        LookupError: an unknown command, or an unknown flag beside dots.
        UsageError: an unknown flag, a wrong value, or a missing argument.
    """
    command, rest = COMMANDS, [word for word in arguments if word != "--help"]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]  # KeyError: no such command; IndexError: one is missing
    if "..." not in rest:
        command.make_context(" ".join(arguments), rest)
        return
    known = {flag for parameter in command.params for flag in parameter.opts}
    if unknown := {word for word in rest if word.startswith("--")} - known:
        raise LookupError(f"{' '.join(arguments)}: unknown {', '.join(unknown)}")


def rmbook_commands() -> list[list[str]]:
    found = [rmbook_arguments(line) for line in shell_lines()]
    found += [rmbook_arguments(code) for code in INLINE if code.startswith("rmbook ")]
    return [arguments for arguments in found if arguments]


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("arguments", rmbook_commands(), ids=" ".join)
def test_command_and_its_flags_exist(arguments):
    parse(arguments)


def test_the_parser_refuses_what_does_not_exist():
    """Otherwise the test above would pass for any README."""
    assert len(rmbook_commands()) >= 15
    for wrong in ("trian", "train --learn 1", "sweep run", "sweep run ... --thirding", "sweep"):
        with pytest.raises((UsageError, LookupError)):
            parse(wrong.split())


def test_flags_in_the_text_exist():
    def flags(command):
        yield from (flag for parameter in command.params for flag in parameter.opts)
        for child in getattr(command, "commands", {}).values():
            yield from flags(child)

    known = set(flags(COMMANDS)) | {"--help"}
    named = {code.split()[0] for code in INLINE if code.startswith("--")}
    assert named <= known
    assert len(named) >= 5


def test_make_targets_exist():
    named = {target for code in [*shell_lines(), *INLINE] for target in re.findall(r"^make ([a-z]+)", code)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"book", "test", "record"} <= named <= targets


def test_recorded_grids_that_are_named_exist():
    names = {arguments[1] for arguments in rmbook_commands() if arguments[0] == "record" and len(arguments) > 1}
    listed = {line.split()[0] for line in call("record").output.splitlines()}
    assert names and names <= listed


def test_the_cheap_commands_work(tmp_path, shared, monkeypatch):
    """The first block on fine-tuning, with a tiny model and few examples in the place of what it names."""
    monkeypatch.chdir(tmp_path)
    tiny = make_tiny_checkpoint(tmp_path / "tiny", pretrain_steps=0)
    left_out = {"...", "made:smollm2"}  # the last takes a package of its own
    lines = {arguments[0]: arguments for arguments in reversed(rmbook_commands()) if not left_out & set(arguments)}
    given = {"facebook/opt-1.3b": str(tiny), "runs/...": "runs/one"}
    train, evaluate, describe, generate = (
        [given.get(word, word) for word in lines[name]] for name in ("train", "evaluate", "describe", "generate")
    )
    data = ["--data-dir", str(shared / "data/rte")]
    for arguments, printed in (
        ([*train, *data, *SMALL, "--output", "runs/one", "--ratio", "1e-2"], "best epoch 1 of 1"),
        ([*evaluate, "--quiet"], '"accuracy"'),
        (describe, "random_masking trains"),
        ([*generate, "--max-new-tokens", "2"], ""),
        (["sweep", "grids"], "table1-tiny"),
    ):
        answer = call(*arguments)
        assert answer.exit_code == 0, answer.output
        assert printed in answer.output
    assert (tmp_path / "runs/one/adapter.safetensors").is_file()


# -------------------------------------------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def tiny_opt(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("readme") / "opt-125m", pretrain_steps=0)


def test_the_python_blocks_run_one_after_the_other(tiny_opt, tmp_path, shared, monkeypatch):
    """With a tiny classifier and random data as what the text calls `model`, `train_data` and `dev_data`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_opt, num_labels=2).eval()
    tokens = torch.randint(5, 700, (24, 12))
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in tokens]
    logits = model(input_ids=tokens).logits.detach()
    names = {"model": model, "train_data": data[:16], "dev_data": data[16:]}
    assert len(PYTHON) == 4

    exec(PYTHON[0], names)
    assert names["result"].steps > 0 and (tmp_path / "adapter.safetensors").is_file()
    assert torch.equal(model(input_ids=tokens).logits, logits)  # the mask was taken off

    exec(PYTHON[1], names)
    assert not torch.equal(model(input_ids=tokens).logits, logits)
    merged = AutoModelForSequenceClassification.from_pretrained("merged").eval()
    torch.testing.assert_close(merged(input_ids=tokens).logits, model(input_ids=tokens).logits)

    names["masking"].remove()
    exec(PYTHON[2], names)
    assert {path.name for path in (tmp_path / "peft_again").iterdir()} >= {"adapter_config.json"}

    small = PYTHON[3].replace('"facebook/opt-125m"', repr(str(tiny_opt)))
    sizes = f"train_size=32, dev_size=8, test_size=8, data_dir={str(shared / 'data/rte')!r}"
    exec(small.replace("train_size=100", sizes), names)
    assert names["result"]["status"] == "completed" and (tmp_path / "runs/small/result.json").is_file()


def test_names_in_the_text_exist():
    named = {name for code in INLINE if (name := re.match(r"rmbook\.([\w.]+)", code))}
    assert named
    for match in named:
        first, *rest = match[1].split(".")
        found = getattr(rmbook, first) if first in rmbook.__all__ else importlib.import_module(f"rmbook.{first}")
        for name in rest:
            found = getattr(found, name)


def test_python_blocks_import_what_they_show_from_the_short_surface():
    for code in PYTHON:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("rmbook", "peft")
                assert node.module == "peft" or {alias.name for alias in node.names} <= set(rmbook.__all__)


# --------------------------------------------------------------------------------------------------------------- paths


def test_paths_in_the_tables_exist():
    cells = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", README, re.MULTILINE)
    paths = [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]
    assert len(paths) > 20
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []
    benchmarks = re.search(r"^\| `benchmarks/` \|.*$", README, re.MULTILINE)[0]
    assert all((ROOT / "benchmarks" / name).is_file() for name in re.findall(r"`(\w+\.py)`", benchmarks))


def test_the_table_of_rooms_is_complete_and_in_the_order_of_imports():
    """It lists the lowest room first; import-linter's layers list it last."""
    listed = re.findall(r"^\| `rmbook/(\w+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.parent.name for path in ROOT.glob("rmbook/*/__init__.py"))
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    height = {name.strip(): -depth for depth, layer in enumerate(layers) for name in layer.split("|")}
    heights = [height[room] for room in listed]
    assert heights == sorted(heights), "README: a room imports only from rooms above it in the list"
