"""The settings of a training run, how the learning rate goes over it, and what comes out."""

import math
from dataclasses import dataclass
from typing import Any

from rmbook.settings import COUNT, check_settings, documented, setting

SCHEDULES = ("constant", "cosine")

LARGEST_BATCH = 2**20
AT_LEAST_ONE: dict[str, Any] = {"least": 1, "most": COUNT, "paper": True}


@documented
@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop; checked when made. Defaults are the paper's (appendix B).

    Example:
        >>> TrainingConfig(learning_rate=1e-2, epochs=3).steps(examples=1000)  # of 8 examples each
        375
    """

    learning_rate: float = setting(
        "Learning rate of AdamW, the largest one of the run", above=0, flags=("--learning-rate", "--lr")
    )
    epochs: int = setting("Passes over the training examples; the dev set is scored after each", 5, **AT_LEAST_ONE)
    batch_size: int = setting("Examples a step, over all processes", 8, least=1, most=LARGEST_BATCH, paper=True)
    micro_batch_size: int | None = setting(
        "Examples that a process computes at a time, to save memory; the step is the same",
        None,
        least=1,
        most=LARGEST_BATCH,
        unset="all of its share",
    )
    max_grad_norm: float = setting("The gradient is clipped to this l2 norm", 1.0, above=0, paper=True)
    weight_decay: float = setting("Weight decay of AdamW", 0.0, least=0, paper=True)
    seed: int = setting("Seed of the examples, the mask, the batch order and dropout", 0, least=0, most=2**63 - 1)
    schedule: str = setting("Schedule of the learning rate", "constant", choices=SCHEDULES, paper=True)
    warmup_steps: int = setting(
        "First steps, over which the learning rate rises from 0 in a line", 0, least=0, most=COUNT, paper=True
    )
    max_steps: int | None = setting(
        "The run ends after so many steps, if not earlier; the epoch under way ends there, and counts",
        None,
        **AT_LEAST_ONE,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def steps(self, examples: int) -> int:
        """Optimiser steps of a whole run on so many training examples."""
        steps = self.epochs * math.ceil(examples / self.batch_size)
        return min(steps, self.max_steps or steps)


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of one run.

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
    history: tuple[dict[str, Any], ...]
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
