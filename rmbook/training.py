"""Training, for every method: AdamW, at a constant learning rate or a cosine's, with the best epoch by a dev set.

The settings are the paper's (appendix B; `TrainingConfig` has them as defaults). Whatever parameters of the model
require a gradient are trained, so full fine-tuning, LoRA and random masks all go through the same loop.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from rmbook.applied import AppliedMethod
from rmbook.checkpoint import Checkpoint
from rmbook.loop import TrainingLoop
from rmbook.objectives import Classification, Objective, classify
from rmbook.schedule import SCHEDULES


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run; checked when made.

    Attributes:
        learning_rate: of AdamW, the largest one of the run; positive.
        epochs: passes over the training data; the dev set is scored after each.
        batch_size: examples a step, over all processes.
        micro_batch_size: examples that a process computes at a time, to save memory; all of its share if None. The
            step is the same.
        max_grad_norm: the gradient is clipped to this l2 norm.
        weight_decay: of AdamW.
        seed: of batch order and dropout.
        schedule: "constant", or "cosine": from the learning rate down to 0 at the run's last step.
        warmup_steps: first steps, over which the learning rate rises from 0 in a line.
        max_steps: the run ends after so many steps, if not earlier; the epoch under way ends there, and counts. No
            limit if None.
    """

    learning_rate: float
    epochs: int = 5
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    schedule: str = "constant"
    warmup_steps: int = 0
    max_steps: int | None = None

    def __post_init__(self):
        for name in ("learning_rate", "max_grad_norm", "weight_decay"):
            value, zero_ok = getattr(self, name), name == "weight_decay"
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero_ok):
                wanted = "zero or a positive" if zero_ok else "a positive"
                raise ValueError(f"{name} must be {wanted} finite number, got {value!r}.")
        for name in ("epochs", "batch_size", "micro_batch_size", "seed", "warmup_steps", "max_steps"):
            value, least = getattr(self, name), 0 if name in ("seed", "warmup_steps") else 1
            if name in ("micro_batch_size", "max_steps") and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be {' or '.join(SCHEDULES)}, got {self.schedule!r}.")

    def steps(self, examples: int) -> int:
        """Optimiser steps of a whole run on so many training examples."""
        return min(self.epochs * math.ceil(examples / self.batch_size), self.max_steps or math.inf)


@dataclass(frozen=True)
class TrainingResult:
    """What came out of one run.

    Attributes:
        status: "completed", or "diverged" if loss or gradient became NaN or infinite.
        best_epoch: epoch with the lowest dev loss, from 1; its weights are in the model. 0 if none was finished: then
            the model has its starting weights.
        dev_loss, dev_accuracy: at the best epoch; NaN if there is none, or if the objective knows no right and wrong.
        history: one row an epoch: epoch, step, train_loss, dev_loss, dev_accuracy.
        steps: optimiser steps taken.
        trainable: number of trained parameters.
        seconds: wall time, that before an interruption included.
        config: the settings.
    """

    status: str
    best_epoch: int
    dev_loss: float
    dev_accuracy: float
    history: tuple[dict, ...]
    steps: int
    trainable: int
    seconds: float
    config: TrainingConfig


def train(
    model: nn.Module,
    train_data: Sequence,
    dev_data: Sequence,
    config: TrainingConfig,
    *,
    collate: Callable | None = None,
    objective: Objective | None = None,
    method: AppliedMethod | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: Checkpoint | None = None,
    log: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train the parameters of `model` that require a gradient; leave the best epoch's weights in it.

    The same seed gives the same result on the same machine, also if the run is interrupted and goes on. The caller's
    global random state is left as it was. The order of the examples is that of
    DataLoader(train_data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)).

    Args:
        model: for the default objective it is called as model(**batch) and must return `.loss` (scalar mean) and
            `.logits` (examples, classes), as models of `transformers` do.
        train_data, dev_data: map-style datasets; for the default objective their collated batches are dicts of tensors
            with a "labels" entry.
        config: settings.
        collate: makes a batch from a list of examples; torch's default if None.
        objective: what is minimised; `Classification(collate)` if None.
        method: what `apply_method` made of the model, for methods that add to the loss or act after a step.
        accelerator: for several processes, mixed precision or another device; a plain one if None.
        checkpoint: where the state is kept. If it holds one, the run goes on from there.
        log: called with a dict after each step and after each epoch, in the first process only.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: if nothing in the model is trainable or a data set is empty.
        CheckpointError: the checkpoint is damaged, or that of another run.
        TrainingInterrupted: `checkpoint.stop_requested` was set; the state is saved.
    """
    method = method or AppliedMethod(model, "as it is", {}, list(model.parameters()), None)
    if method.trainable == 0:
        raise ValueError("the model has no trainable entries: apply a method first, or raise its density or ratio.")
    for name, data in (("train_data", train_data), ("dev_data", dev_data)):
        if len(data) == 0:
            raise ValueError(f"{name} is empty; training needs at least one example.")
    accelerator, objective = accelerator or Accelerator(), objective or Classification(collate)
    device = accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed + 2**32 * accelerator.process_index)  # each process has dropout of its own
        loop = TrainingLoop(method, objective, config, accelerator, checkpoint, log)
        state = loop.run(train_data, dev_data, progress)
    chosen = state.history[state.best_epoch - 1] if state.best_epoch else {}
    return TrainingResult(
        status=state.status,
        best_epoch=state.best_epoch,
        dev_loss=chosen.get("dev_loss", math.nan),
        dev_accuracy=chosen.get("dev_accuracy", math.nan),
        history=tuple(state.history),
        steps=state.step,
        trainable=method.trainable,
        seconds=state.seconds,
        config=config,
    )


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean loss and accuracy (a share in [0, 1]) over a data loader, in evaluation mode.

    Args:
        model: as for `train` with its default objective.
        loader: batches as for `train`; they are moved to the model's device.
    """
    model.eval()
    device = next(model.parameters()).device
    loss_sum, right, count = 0.0, 0, 0
    for batch in loader:
        loss, hits = classify(model, {name: tensor.to(device) for name, tensor in batch.items()})
        loss_sum, right, count = loss_sum + loss.item(), right + hits, count + len(batch["labels"])
    return loss_sum / count, right / count
