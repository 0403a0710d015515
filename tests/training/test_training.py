"""The training loop against a plain PyTorch loop, its choice of epoch, divergence, determinism and bad input."""

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import TwoLayers
from torch import nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SequenceClassifierOutput

from rmbook import TrainingConfig, apply_random_mask, evaluate, train
from rmbook.training.checkpoint import Checkpoint


class Classifier(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.body, self.dropout, self.calls = TwoLayers(), nn.Dropout(dropout), 0

    def forward(self, x, labels):
        logits = self.body(self.dropout(x))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


class Rows(list):
    pass


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 24, generator=generator)
    return Rows({"x": row, "labels": label} for row, label in zip(x, (x[:, 0] > 0).long(), strict=True))


TRAIN, DEV = rows(50, 0), rows(30, 1)


def start(density=0.3, **arguments):
    model = Classifier(**arguments)
    return model, apply_random_mask(model, ["first", "second"], density=density)


def test_equals_a_plain_loop():
    """The same batches through a dozen lines of PyTorch give the same losses, dev scores and chosen weights."""
    config = TrainingConfig(learning_rate=0.02, epochs=4, batch_size=8, max_grad_norm=0.05, weight_decay=0.1, seed=7)
    model, masking = start()
    result = train(model, TRAIN, DEV, config, progress=False)
    other, other_masking = start()
    values = list(other_masking.parameters())
    optimizer = torch.optim.AdamW(values, lr=0.02, weight_decay=0.1)
    loader = DataLoader(TRAIN, 8, shuffle=True, generator=torch.Generator().manual_seed(7))
    kept = []
    for row in result.history:
        other.train()
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = other(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(values, 0.05)
            optimizer.step()
            losses.append(loss.item())
        dev_loss, dev_accuracy = evaluate(other, DEV, batch_size=30)
        assert row["train_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert row["dev_loss"] == pytest.approx(dev_loss, abs=1e-5)
        assert row["dev_accuracy"] == pytest.approx(dev_accuracy)
        kept.append([v.detach().clone() for v in values])
    assert result.status == "completed" and result.steps == 4 * 7 and result.trainable == masking.trainable
    assert result.best_epoch == 1 + min(range(4), key=lambda k: result.history[k]["dev_loss"])
    for got, wanted in zip(masking.parameters(), kept[result.best_epoch - 1], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_the_best_epoch_is_kept_not_the_last():
    model, masking = start(density=1.0)
    result = train(model, TRAIN, DEV, TrainingConfig(0.05, epochs=20, seed=1), progress=False)
    losses = [row["dev_loss"] for row in result.history]
    assert min(losses) < losses[-1] and result.best_epoch == 1 + losses.index(min(losses))
    assert evaluate(model, DEV, batch_size=10)[0] == pytest.approx(min(losses), abs=1e-6)
    assert result.dev_loss == min(losses)


def test_same_seed_same_result_and_global_state_untouched():
    outcomes, state = [], torch.random.get_rng_state()
    for seed in (0, 0, 1):
        torch.manual_seed(int(np.random.default_rng().integers(2**31)))
        before = torch.random.get_rng_state()
        model, masking = start(dropout=0.2)
        torch.random.set_rng_state(before)
        result = train(model, TRAIN, DEV, TrainingConfig(0.01, epochs=2, seed=seed), progress=False)
        assert torch.equal(before, torch.random.get_rng_state())
        outcomes.append((result.history, torch.cat([v.detach() for v in masking.parameters()])))
    torch.random.set_rng_state(state)
    assert outcomes[0][0] == outcomes[1][0] and torch.equal(outcomes[0][1], outcomes[1][1])
    assert outcomes[0][0] != outcomes[2][0]


def test_a_run_that_diverges_at_once_is_recorded_and_leaves_the_starting_weights():
    model, masking = start()
    bad = Rows(dict(row, x=row["x"] * (math.nan if k == 20 else 1)) for k, row in enumerate(TRAIN))
    result = train(model, bad, DEV, TrainingConfig(0.01), progress=False)
    assert result.status == "diverged" and result.best_epoch == 0 and result.steps < 7
    assert math.isnan(result.dev_loss) and masking.distance() == 0


def test_a_run_that_diverges_later_keeps_its_best_epoch():
    class Breaks(Classifier):
        def forward(self, x, labels):
            output = super().forward(x, labels)
            self.calls += self.training
            if self.calls > 10:  # in the second of the epochs of 7 steps
                output.loss = output.loss * math.inf
            return output

    model = Breaks()
    masking = apply_random_mask(model, ["first"], density=0.5)
    result = train(model, TRAIN, DEV, TrainingConfig(0.01, epochs=3), progress=False)
    assert result.status == "diverged" and result.best_epoch == 1 and result.steps == 10
    model.calls = 0
    assert evaluate(model, DEV, batch_size=10)[0] == pytest.approx(result.dev_loss, abs=1e-6)
    assert masking.distance() > 0


def test_a_gradient_that_is_not_finite_counts_as_divergence_though_the_loss_is():
    class Steep(Classifier):
        def forward(self, x, labels):
            output = super().forward(x, labels)
            output.loss = (output.logits.sum() * 0).abs().sqrt()  # 0, with slope 0 * infinity
            return output

    model = Steep()
    masking = apply_random_mask(model, ["first"], density=0.5)
    result = train(model, TRAIN, DEV, TrainingConfig(0.01), progress=False)
    assert result.status == "diverged" and result.steps == 0 and masking.distance() == 0


def test_evaluate_weighs_a_short_last_batch_rightly():
    model, _ = start()
    whole, parts = evaluate(model, DEV, batch_size=30), evaluate(model, DEV, batch_size=7)
    assert whole[0] == pytest.approx(parts[0], abs=1e-6) and whole[1] == pytest.approx(parts[1])


def test_mixed_precision_trains_and_leaves_the_model_as_it_was():
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate allows one precision a process
    model, masking = start()
    forward = model.forward
    result = train(
        model, TRAIN, DEV, TrainingConfig(0.02), accelerator=Accelerator(mixed_precision="bf16"), progress=False
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert result.status == "completed" and masking.distance() > 0
    assert all(v.dtype == torch.float32 for v in masking.parameters())
    assert (
        model.forward == forward and model(**torch.utils.data.default_collate(list(DEV))).logits.dtype == torch.float32
    )


def test_progress_bar_shows_loss_and_accuracy(capsys):
    model, _ = start()
    train(model, TRAIN, DEV, TrainingConfig(0.01, epochs=3))
    shown = capsys.readouterr().err
    assert "loss" in shown and "dev accuracy" in shown


@pytest.mark.parametrize(
    "setting, value",
    [
        ("learning_rate", math.nan),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        ("learning_rate", "1e-3"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("max_grad_norm", 0),
        ("weight_decay", -1),
        ("seed", -1),
        ("seed", 1.0),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ValueError, match=setting):
        TrainingConfig(**{"learning_rate": 1e-3, setting: value})


def test_nothing_to_train_and_empty_data_are_refused():
    model, _ = start()
    with pytest.raises(ValueError, match="train_data is empty"):
        train(model, Rows(), DEV, TrainingConfig(0.01))
    with pytest.raises(ValueError, match="dev_data is empty"):
        train(model, TRAIN, Rows(), TrainingConfig(0.01))
    for parameters in (start(density=0.0)[0], start()[0].requires_grad_(False)):
        with pytest.raises(ValueError, match="no trainable"):
            train(parameters, TRAIN, DEV, TrainingConfig(0.01))


def test_neither_the_environment_nor_an_earlier_accelerator_changes_a_run(monkeypatch):
    config = TrainingConfig(0.02, epochs=2, seed=3)
    plain = train(start()[0], TRAIN, DEV, config, progress=False).history
    AcceleratorState._reset_state(True)
    earlier = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    assert train(start()[0], TRAIN, DEV, config, progress=False).history == plain
    assert earlier.mixed_precision == "bf16" and earlier.gradient_accumulation_steps == 4  # and is of use as before
    AcceleratorState._reset_state(True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    assert train(start()[0], TRAIN, DEV, config, progress=False).history == plain


def test_training_works_in_a_thread(tmp_path):
    """Where Python allows no handlers of signals."""
    config, found = TrainingConfig(0.02, epochs=1), []

    def run():
        checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
        with checkpoint.catching_signals():
            found.append(train(start()[0], TRAIN, DEV, config, checkpoint=checkpoint, progress=False).history)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [history[0]["dev_loss"] for history in found] == [
        train(start()[0], TRAIN, DEV, config, progress=False).history[0]["dev_loss"]
    ]
