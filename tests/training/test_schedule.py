"""Learning rates over a run and runs of a number of steps: as transformers has them, and the same bits after a stop."""

import dataclasses
import math

import pytest
import torch
from test_resume import CONFIG, TRAIN, Killed, interrupted_log, outcome, run, start
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from rmbook.training.checkpoint import Checkpoint
from rmbook.training.config import TrainingConfig, schedule_share

COSINE = dataclasses.replace(CONFIG, schedule="cosine", warmup_steps=3, epochs=9, max_steps=12)  # 5 steps an epoch


@pytest.mark.parametrize("warmup", [0, 1, 200])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_shares_are_those_of_transformers(schedule, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, 2000),
    }[schedule]()
    for step in range(2000):
        assert schedule_share(step, 2000, schedule, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert schedule_share(2000, 2000, "cosine", warmup) == pytest.approx(0)


def test_the_number_of_steps():
    config = TrainingConfig(learning_rate=1, epochs=3, batch_size=8)
    assert [config.steps(n) for n in (1, 8, 9, 37)] == [3, 3, 6, 15]
    assert dataclasses.replace(config, max_steps=7).steps(37) == 7
    assert dataclasses.replace(config, max_steps=70).steps(37) == 15


@pytest.mark.parametrize(
    ("max_steps", "epochs"), [(12, [5, 10, 12]), (10, [5, 10]), (1, [1]), (5, [5]), (1000, [5, 10, 15])]
)
def test_the_epoch_under_way_ends_with_the_last_step_and_counts(max_steps, epochs):
    rows = []
    applied = start()
    result = run(applied, config=dataclasses.replace(CONFIG, max_steps=max_steps), log=rows.append)
    assert result.steps == epochs[-1] and [row["step"] for row in result.history] == epochs
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, epochs[-1] + 1))
    losses = [row["loss"] for row in rows if "loss" in row]
    last = losses[epochs[-2] if len(epochs) > 1 else 0 :]
    assert result.history[-1]["train_loss"] == sum(last) / len(last)
    assert result.best_epoch == min(result.history, key=lambda row: row["dev_loss"])["epoch"]


def test_fewer_steps_are_the_first_ones_of_a_longer_run():
    short, long = [], []
    run(start(), config=dataclasses.replace(CONFIG, max_steps=8), log=short.append)
    run(start(), log=long.append)

    def losses(rows):
        return [row["loss"] for row in rows if "loss" in row]

    assert losses(short) == losses(long)[:8]


@pytest.mark.parametrize("method", ["random_masking", "full"])
def test_with_a_schedule_killed_at_any_row_it_ends_in_the_same_bits(method, tmp_path):
    undisturbed, rows = start(method), []
    wanted = outcome(undisturbed, run(undisturbed, config=COSINE, log=rows.append))
    assert wanted[0].steps == 12 and len(rows) == 12 + 3
    for kill in (1, 3, 4, 6, 13, 14, len(rows)):  # in and after the warm-up, at ends of epochs, at the last step
        path = tmp_path / f"{kill}.safetensors"
        with pytest.raises(Killed):
            run(start(method), config=COSINE, checkpoint=Checkpoint(path, every=0), log=interrupted_log(kill, []))
        applied = start(method)
        assert outcome(applied, run(applied, config=COSINE, checkpoint=Checkpoint(path, every=0))) == wanted


def test_the_rate_enters_the_step():
    """Full fine-tuning without clipping and decay: the first step, at rate 0, changes nothing; the second does."""
    config = dataclasses.replace(COSINE, weight_decay=0.0)
    at_start = start("full").state()
    applied = start("full")
    run(applied, config=dataclasses.replace(config, max_steps=1))
    assert all(torch.equal(value, at_start[name]) for name, value in applied.state().items())
    applied = start("full")
    run(applied, config=dataclasses.replace(config, max_steps=2))  # Adam moves no entry by much more than its rate
    moved = max((value - at_start[name]).abs().max().item() for name, value in applied.state().items())
    assert 0.9 * config.learning_rate / 3 < moved < 1.5 * config.learning_rate / 3


def test_a_checkpoint_from_before_there_were_schedules_is_taken_up(tmp_path):
    path, applied = tmp_path / "c.safetensors", start()
    with pytest.raises(Killed):
        run(start(), checkpoint=Checkpoint(path, every=0), log=interrupted_log(7, []))
    info, tensors = Checkpoint(path).load()
    for name in ("schedule", "warmup_steps", "max_steps"):
        del info["config"][name]
    Checkpoint(path).save(info, tensors)
    undisturbed = start()
    assert outcome(applied, run(applied, checkpoint=Checkpoint(path))) == outcome(undisturbed, run(undisturbed))


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "linear"}, {"schedule": None}, {"warmup_steps": -1}, {"warmup_steps": 1.5}, {"max_steps": 0}]
    + [{"max_steps": True}],
)
def test_bad_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        TrainingConfig(learning_rate=1, **wrong)


def test_the_run_is_of_37_examples():
    assert math.ceil(len(TRAIN) / CONFIG.batch_size) == 5 and CONFIG.epochs == 3  # what the numbers above rest on
