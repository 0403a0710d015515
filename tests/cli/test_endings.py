"""How the command ends where the machine, the shell or the user's hands are in the way: one line and a code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import call, refused
from tiny_runs import flags, rmbook

from rmbook.cli import interrupt
from rmbook.errors import closest, printable, shown


def shell(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "rmbook", *map(str, arguments)], capture_output=True, timeout=120, **settings
    )


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"ratio": 1e-9}, 2, "trains nothing"),
        ({"batch-size": 10**30}, 2, "batch_size"),
        ({"set": "alpha=2"}, 2, "alpha"),
    ],
)
def test_what_cannot_train_leaves_no_folder(changes, code, part, settings, tmp_path):
    given = {name.replace("_", "-"): value for name, value in settings.items()} | changes
    refused(call(*flags(given, tmp_path / "new" / "run")), part)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["long", "deep", "below a file", "a file"])
def test_a_place_where_no_run_can_be_is_refused_before_anything_is_loaded(kind, settings, tmp_path):
    (tmp_path / "file").write_text("years of work")
    places = {"long": "x" * 300, "deep": "x/" * 2000 + "y", "below a file": "file/run", "a file": "file"}
    values = settings | {"model": str(tmp_path / "nowhere")}
    answer = call(*flags(values, tmp_path / places[kind]))
    refused(answer)
    assert "nowhere" not in answer.stderr and len(answer.stderr) < 402
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_for_predictions_is_refused_before_the_model_is_loaded(settings, tmp_path):
    (tmp_path / "folder").mkdir()
    model = ["--model", tmp_path / "nowhere", "--task", "sst2", "--predictions"]
    refused(call("evaluate", *model, tmp_path / "folder"), "it is a folder")
    refused(call("evaluate", *model, tmp_path / ("x" * 250)), "too long")


def test_a_home_folder_is_found_and_an_unknown_one_refused(monkeypatch, settings, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    values = settings | {"epochs": 1}
    os.symlink(values.pop("model"), tmp_path / "model")
    answer = call(*flags(values, "~/run"), "--model=~/model")
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "run" / "result.json").exists() and not (tmp_path / "~").exists()
    for command in (["describe"], ["evaluate"], ["train", "--resume"], ["sweep", "status"], ["report"]):
        refused(call(*command, "~nobody-here/x"), "no user", "~nobody-here")
    refused(call("train", "--config", "~nobody-here/x"), "no user")
    refused(call("train", "--model", "a", "--task", "rte", "--lr", 1, "--data-dir=~nobody-here/x"), "no user")


def test_texts_that_are_not_unicode_are_refused():
    for prompt, given in ((b"\xff\xfe", b""), (b"-", b"\x80abc")):
        text = prompt.decode(errors="surrogateescape")
        answer = shell("generate", "--model", "nowhere", "--prompt", text, input=given)
        assert answer.returncode == 2 and answer.stderr.count(b"\n") == 1 and b"UTF-8" in answer.stderr


def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        answer = subprocess.run([sys.executable, "-m", "rmbook", "describe", "--method", "lora"], stdout=full,
                                stderr=subprocess.PIPE, timeout=60)  # fmt: skip
    assert answer.returncode == 1 and answer.stderr.count(b"\n") == 1 and b"No space left" in answer.stderr


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing one of them fails
from typer.testing import CliRunner
from rmbook.cli.app import app
for words in map(str.split, sys.argv[1:]):
    answer = CliRunner().invoke(app, words)
    print(answer.exit_code, answer.output.partition("\\n")[0])
"""


def test_what_needs_no_model_does_not_wait_for_torch(tmp_path):
    asked = {
        "train --model m --task sst3 --lr 1": "2 rmbook: unknown task 'sst3'",
        "train --model m --task rte --lr 1 --method lora --ratio 0.1": "2 rmbook: lora takes no ratio",
        "generate --model m": "2 rmbook: --prompt must be given",
        f"report {tmp_path}": "2 rmbook: ",
        f"sweep status {tmp_path}": "2 rmbook: ",
        "sweep grids": "0 ",
        "--help": "0 ",
    }
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *asked], capture_output=True, text=True, timeout=60)
    for line, start in zip(done.stdout.splitlines(), asked.values(), strict=True):
        assert line.startswith(start) and "ImportError" not in line, line


def begun(process) -> bool:
    """Whether the command handles signals: it has a pipe for them."""
    try:
        fds = [fd for fd in Path(f"/proc/{process.pid}/fd").iterdir() if int(fd.name) > 2]
        return any(os.readlink(fd).startswith("pipe") for fd in fds)
    except FileNotFoundError:  # closed between the two looks
        return False


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at a process through /proc")
@pytest.mark.parametrize(("seconds", "times"), [(0.0, 1), (0.0, 2), (0.5, 2), (3.0, 1)])
def test_ctrl_c_ends_in_one_line_while_libraries_load(seconds, times, settings, tmp_path):
    given = flags(settings | {"epochs": 1000}, tmp_path / "run")
    process = rmbook(*given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not begun(process):
        time.sleep(0.005)
    time.sleep(seconds)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.count(b"\n") == 1 and error.startswith(b"rmbook: "), error


def test_a_signal_that_a_library_loses_ends_the_process_all_the_same():
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(interrupt.__file__).parents[2])!r})
from rmbook.cli import interrupt
interrupt._state.patience = 0.5
interrupt.install()
interrupt.running()
def lose():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except BaseException:
        lose()
lose()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and error == b"rmbook: interrupted.\n"


def test_values_in_messages_are_short_and_steer_no_terminal():
    bomb = ["x" * 10**6] * 10
    for _ in range(20):
        bomb = [bomb] * 10
    for value in ("a" * 10**6, bomb, {"a": bomb}, 10**5000, "\x1b[2J\n\ud800", b"\xff" * 10**6, None):
        assert len(shown(value)) <= 60 and shown(value).isprintable()
    assert shown("lorra") == "'lorra'" and shown(0.5) == "0.5"
    assert printable("a\n b\t\x1b[0m", 100) == "a b \\x1b[0m"
    assert closest("x" * 10**6 + "\x1b", ["lora"]) == "known are lora."
