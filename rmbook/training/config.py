"""The settings of a training run, how the learning rate goes over it, and what comes out."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

SCHEDULES = ("constant", "cosine")


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


def schedule_share(step: int, steps: int, schedule: str = "constant", warmup_steps: int = 0) -> float:
    """The share of the learning rate with which a step is taken, 0 to 1: a function of the step alone.

    The same as transformers' `get_constant_schedule_with_warmup` and `get_cosine_schedule_with_warmup`: in the warm-up
    step / warmup_steps, so that the first step changes nothing; then half a cosine, down to 0 after the last step.

    Args:
        step: number of steps taken before, from 0.
        steps: of the whole run.
        schedule: "constant" or "cosine".
        warmup_steps: first steps, over which the share rises in a line.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
