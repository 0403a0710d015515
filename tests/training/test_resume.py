"""A run that is stopped at any moment and taken up again ends in the same bits; cut batches take the same steps."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from test_objectives import questions
from transformers import OPTConfig, OPTForCausalLM

from rmbook import TrainingConfig, train
from rmbook.methods.apply import apply_method
from rmbook.training import loop
from rmbook.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainingInterrupted,
    optimizer_tensors,
    restore_optimizer,
)
from rmbook.training.objectives import Answering, OptionChoice

METHODS = {
    "random_masking": {"density": 0.3},
    "full": {},
    "lora": {"rank": 2},
    "adalora": {"rank": 1, "initial_rank": 3, "total_steps": 15, "warmup_steps": 2, "final_steps": 3, "interval": 2},
    "prefix": {"length": 2},
    "bitfit": {},
}
TRAIN, DEV = questions(37, seed=1), questions(9, seed=2)
CONFIG = TrainingConfig(learning_rate=0.02, epochs=3, batch_size=8, max_grad_norm=0.5, weight_decay=0.01, seed=3)


class Killed(Exception):
    pass


def start(method="random_masking", dropout=0.2, dtype=torch.float32):
    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=50,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            dropout=dropout,
        )
    ).to(dtype)
    return apply_method(model, method, seed=5, **METHODS[method])


def run(applied, objective=None, config=CONFIG, **arguments):
    return train(
        applied.model,
        TRAIN,
        DEV,
        config,
        objective=objective or OptionChoice(),
        method=applied,
        progress=False,
        **arguments,
    )


def outcome(applied, result):
    """Everything that must be the same, and is no time."""
    return dataclasses.replace(result, seconds=0.0), {n: t.numpy().tobytes() for n, t in applied.state().items()}


def interrupted_log(stop_after, rows):
    """A log that dies after so many rows, as a kill does: at any place, without warning."""

    def log(row):
        rows.append(row)
        if len(rows) == stop_after:
            raise Killed

    return log


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_any_row_and_resumed_it_ends_in_the_same_bits(method, tmp_path):
    undisturbed = start(method)
    rows = []
    wanted = outcome(undisturbed, run(undisturbed, log=rows.append))
    assert wanted[0].status == "completed" and len(rows) == 3 * 5 + 3
    for kills in ([1], [4, 7], [6], [11, 2], [len(rows)]):  # rows after which it dies, each counted from a resumption
        path = tmp_path / f"{method}-{'-'.join(map(str, kills))}.safetensors"
        for kill in kills:
            with pytest.raises(Killed):
                run(start(method), checkpoint=Checkpoint(path, every=0), log=interrupted_log(kill, []))
        applied = start(method)
        assert outcome(applied, run(applied, checkpoint=Checkpoint(path, every=0))) == wanted


def test_with_rare_checkpoints_it_goes_back_to_the_last_epoch(tmp_path):
    undisturbed = start()
    wanted = outcome(undisturbed, run(undisturbed))
    path, rows = tmp_path / "c.safetensors", []
    with pytest.raises(Killed):
        run(start(), checkpoint=Checkpoint(path, every=1e9), log=interrupted_log(9, rows))  # in the second epoch
    assert Checkpoint(path).progress() == (5, 1)
    applied, again = start(), []
    assert outcome(applied, run(applied, checkpoint=Checkpoint(path), log=again.append)) == wanted
    assert [row["step"] for row in again[:3]] == [6, 7, 8]


def test_a_stop_that_is_asked_for_is_kept_at_the_next_step(tmp_path):
    undisturbed = start()
    wanted = outcome(undisturbed, run(undisturbed))
    checkpoint = Checkpoint(tmp_path / "c.safetensors", every=1e9)

    def log(row):
        checkpoint.stop_requested |= row["step"] == 7

    with pytest.raises(TrainingInterrupted, match="step 8"):  # the question is asked once a step
        run(start(), checkpoint=checkpoint, log=log)
    assert Checkpoint(checkpoint.path).progress() == (8, 1)
    applied = start()
    assert outcome(applied, run(applied, checkpoint=Checkpoint(checkpoint.path))) == wanted


def test_a_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "c.safetensors"
    first = start()
    wanted = outcome(first, run(first, checkpoint=Checkpoint(path)))
    applied, rows = start(), []
    assert outcome(applied, run(applied, checkpoint=Checkpoint(path), log=rows.append)) == wanted and not rows


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    run(start(), checkpoint=Checkpoint(path))
    other = dataclasses.replace(CONFIG, learning_rate=0.1)
    with pytest.raises(CheckpointError, match="other settings"):
        run(start(), config=other, checkpoint=Checkpoint(path))
    content = path.read_bytes()
    for damage in (content[:-9], content[:-4] + b"abcd", b"", content[:200]):
        path.write_bytes(damage)
        before = start()
        state = before.state()
        with pytest.raises(CheckpointError, match="Remove|remove"):
            run(before, checkpoint=Checkpoint(path))
        assert all(torch.equal(state[name], tensor) for name, tensor in before.state().items())


@pytest.mark.parametrize("wrote, here, process", [(1, 2, 0), (1, 2, 1), (2, 3, 2)])
def test_more_processes_than_wrote_a_checkpoint_are_refused_by_each(wrote, here, process, tmp_path, monkeypatch):
    """Each has a random state of its own: with more of them some have none."""
    path = tmp_path / "c.safetensors"
    with pytest.raises(Killed):
        run(start(), checkpoint=Checkpoint(path, every=0), log=interrupted_log(3, []))
    info, tensors = Checkpoint(path).load()
    Checkpoint(path).save(info, tensors | {"random/cpu": tensors["random/cpu"].repeat(wrote, 1)})
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: here))
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: process))
    applied = start()
    before = applied.state()
    with pytest.raises(CheckpointError, match=f"by {wrote} process.*now there are {here}.*with {wrote}"):
        run(applied, checkpoint=Checkpoint(path))
    assert all(torch.equal(before[name], tensor) for name, tensor in applied.state().items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("unable to mmap 2048 bytes from file <c.safetensors>: Cannot allocate memory (12)"),
        MemoryError(),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
    ],
    ids=["GPU", "CPU", "file", "Python", "process"],
)
def test_what_goes_wrong_beside_a_checkpoint_is_not_put_down_to_it(error, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    run(start(), checkpoint=Checkpoint(path))

    def fails(*_):
        raise error

    monkeypatch.setattr(loop, "restore_optimizer", fails)
    with pytest.raises(type(error)) as raised:
        run(start(), checkpoint=Checkpoint(path))
    assert raised.value is error


def test_a_checkpoint_that_does_not_fit_says_what_came(tmp_path):
    path = tmp_path / "c.safetensors"
    run(start(), checkpoint=Checkpoint(path))
    info, tensors = Checkpoint(path).load()
    Checkpoint(path).save(info, tensors | {"random/cpu": tensors["random/cpu"][:, :-1]})
    with pytest.raises(CheckpointError, match="damaged .RuntimeError: .*size.*: remove it"):
        run(start(), checkpoint=Checkpoint(path))
    Checkpoint(path).save(info | {"scaler": {"scale": 65536.0}}, tensors)
    with pytest.raises(CheckpointError, match="gradients were scaled .fp16., and this one scales none: resume"):
        run(start(), checkpoint=Checkpoint(path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("0:exp_avg_sq"),
        lambda state: state.update({"0:momentum": state["0:exp_avg"]}),
        lambda state: state.update({"1:exp_avg": state["1:exp_avg"][:-1]}),
        lambda state: state.update({"9999:step": state["0:step"]}),
        lambda state: state.update({"0:step": torch.ones(3)}),
    ],
    ids=["a moment less", "another optimiser's", "shape", "no such parameter", "no number"],
)
def test_the_optimisers_state_must_fit(damage):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer_tensors(optimizer)
    restore_optimizer(torch.optim.AdamW(model.parameters()), state)
    damage(state)
    with pytest.raises((IndexError, ValueError)):
        restore_optimizer(torch.optim.AdamW(model.parameters()), state)


def test_a_run_may_go_on_with_smaller_parts_of_a_batch(tmp_path):
    """What a run that ran out of memory needs."""
    path, undisturbed = tmp_path / "c.safetensors", start(dropout=0.0, dtype=torch.float64)
    wanted = run(undisturbed)
    with pytest.raises(Killed):
        run(start(dropout=0.0, dtype=torch.float64), checkpoint=Checkpoint(path, every=0), log=interrupted_log(8, []))
    applied = start(dropout=0.0, dtype=torch.float64)
    result = run(applied, config=dataclasses.replace(CONFIG, micro_batch_size=2), checkpoint=Checkpoint(path))
    for got, row in zip(result.history, wanted.history, strict=True):
        assert got == pytest.approx(row, rel=1e-9)


def test_a_checkpoint_is_replaced_in_one_step(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    checkpoint.save({"state": {"step": 1, "history": []}}, {"a": torch.ones(3)})

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save({"state": {"step": 2, "history": []}}, {"a": torch.zeros(3)})
    assert checkpoint.load()[1]["a"].sum() == 3 and [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("objective", [OptionChoice(), Answering()], ids=["choice", "answer"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_gradient_accumulation_takes_the_big_batchs_steps(objective, size):
    results = []
    for micro in (None, size):
        applied = start(dropout=0.0, dtype=torch.float64)
        result = run(applied, objective, dataclasses.replace(CONFIG, micro_batch_size=micro))
        results.append((result, torch.cat([t.reshape(-1) for t in applied.state().values()])))
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-7, atol=1e-10)
    for got, wanted in zip(results[1][0].history, results[0][0].history, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9, nan_ok=True)


def test_a_log_row_is_fit_for_a_file():
    rows = []
    run(start(), log=rows.append)
    steps = [row for row in rows if "loss" in row]
    assert json.loads(json.dumps(rows)) == rows and [row["step"] for row in steps] == list(range(1, 16))
    lengths = sum(len(option.input_ids) for example in TRAIN for option in example.options)
    assert sum(row["tokens"] for row in steps) == 3 * lengths
