"""Training, for every method: AdamW, at a constant learning rate or a cosine's, with the best epoch by a dev set.

The settings are the paper's (appendix B; `TrainingConfig` has them as defaults). Whatever parameters of the model
require a gradient are trained, so full fine-tuning, LoRA and random masks all go through the same loop.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rmbook.methods.applied_method import AppliedMethod
from rmbook.training.accelerator import keeping_state, new_accelerator
from rmbook.training.checkpoint import Checkpoint
from rmbook.training.config import TrainingConfig, TrainingResult
from rmbook.training.loop import TrainingLoop
from rmbook.training.objectives import Classification, Objective


def train(
    model: nn.Module,
    train_data: Sequence[Any],
    dev_data: Sequence[Any],
    config: TrainingConfig,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    objective: Objective | None = None,
    method: AppliedMethod | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: Checkpoint | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
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
        accelerator: for several processes, mixed precision or another device; if None, a plain one
            that neither the environment nor an earlier Accelerator changes.
        checkpoint: where the state is kept. If it holds one, the run goes on from there.
        log: called with a dict after each step and after each epoch, in the first process only.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: if nothing in the model is trainable or a data set is empty.
        CheckpointError: the checkpoint is damaged, or that of another run or of fewer processes.
        TrainingInterrupted: `checkpoint.stop_requested` was set; the state is saved.
    """
    method = method or AppliedMethod(model, "as it is", {}, list(model.parameters()), None)
    if method.trainable == 0:
        raise ValueError("the model has no trainable entries: apply a method first, or raise its density or ratio.")
    for name, data in (("train_data", train_data), ("dev_data", dev_data)):
        if len(data) == 0:
            raise ValueError(f"{name} is empty; training needs at least one example.")
    objective = objective or Classification(collate)
    with contextlib.ExitStack() as around:
        if accelerator is None:
            around.enter_context(keeping_state())
            accelerator = new_accelerator()
        device = accelerator.device
        around.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
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
