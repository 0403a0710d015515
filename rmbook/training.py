"""One training loop for every method: AdamW at a constant learning rate, with the best epoch chosen on a dev set.

The settings are the paper's (appendix B; `TrainingConfig` has them as defaults). The loop trains whatever
parameters of the model require a gradient, so full fine-tuning, LoRA and random masks all go through it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run; checked when made.

    Attributes:
        learning_rate: of AdamW, constant over the run; positive.
        epochs: passes over the training data; the dev set is scored after each.
        batch_size: examples a step and process.
        max_grad_norm: the gradient is clipped to this l2 norm.
        weight_decay: of AdamW.
        seed: of batch order and dropout.
    """

    learning_rate: float
    epochs: int = 5
    batch_size: int = 8
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name in ("learning_rate", "max_grad_norm", "weight_decay"):
            value, zero_ok = getattr(self, name), name == "weight_decay"
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero_ok):
                wanted = "zero or a positive" if zero_ok else "a positive"
                raise ValueError(f"{name} must be {wanted} finite number, got {value!r}.")
        for name in ("epochs", "batch_size", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


@dataclass(frozen=True)
class TrainingResult:
    """What came out of one run.

    Attributes:
        status: "completed", or "diverged" if loss or gradient became NaN or infinite.
        best_epoch: epoch with the lowest dev loss, from 1; its weights are in the model. 0 if none was finished: then
            the model has its starting weights.
        dev_loss, dev_accuracy: at the best epoch; NaN if there is none.
        history: one row an epoch: epoch, step, train_loss, dev_loss, dev_accuracy.
        steps: optimiser steps taken.
        trainable: number of trained parameters.
        seconds: wall time.
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
    train_data: Dataset,
    dev_data: Dataset,
    config: TrainingConfig,
    *,
    collate: Callable | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train the parameters of `model` that require a gradient; leave the best epoch's weights in it.

    The same seed gives the same result on the same machine. The caller's global random state is left as it was.

    Args:
        model: called as model(**batch); must return `.loss` (scalar mean) and `.logits` (examples, classes), as models
            of `transformers` do.
        train_data, dev_data: map-style datasets whose collated batches are dicts of tensors with a "labels" entry.
        config: settings.
        collate: makes a batch from a list of examples; torch's default if None.
        accelerator: for several processes, mixed precision or another device; a plain one if None.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: if nothing in the model is trainable or a data set is empty.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trainable = sum(parameter.numel() for parameter in trained.values())
    if trainable == 0:
        raise ValueError("the model has no trainable entries: apply a method first, or raise its density or ratio.")
    for name, data in (("train_data", train_data), ("dev_data", dev_data)):
        if len(data) == 0:
            raise ValueError(f"{name} is empty; training needs at least one example.")
    accelerator = accelerator or Accelerator()
    device = accelerator.device
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        order = torch.Generator().manual_seed(config.seed)
        loader = DataLoader(train_data, config.batch_size, shuffle=True, generator=order, collate_fn=collate)
        dev_loader = DataLoader(dev_data, 4 * config.batch_size, collate_fn=collate)
        fused = device.type in ("cpu", "cuda")  # several times faster than the loop over tensors
        optimizer = torch.optim.AdamW(
            trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        prepared, optimizer, loader, dev_loader = accelerator.prepare(model, optimizer, loader, dev_loader)
        try:
            outcome = _run(model, prepared, optimizer, loader, dev_loader, config, accelerator, progress)
        finally:  # mixed precision wraps the model's forward: take that off again
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    seconds = time.perf_counter() - started
    return TrainingResult(**outcome, trainable=trainable, seconds=seconds, config=config)


def _run(model, prepared, optimizer, loader, dev_loader, config, accelerator, progress) -> dict:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [*trained, *model.buffers()]  # buffers: batch normalisation and the like move during training
    best, history, best_epoch, step, status = _copy(kept), [], 0, 0, "completed"
    bar = tqdm(
        total=config.epochs * len(loader),
        unit="step",
        leave=False,
        disable=not (progress and accelerator.is_main_process),
    )
    with bar:
        for epoch in range(1, config.epochs + 1):
            prepared.train()
            losses = []
            for batch in loader:
                optimizer.zero_grad()
                loss = prepared(**batch).loss
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(trained, config.max_grad_norm)
                finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)
                if not bool(accelerator.reduce(finite.float(), "mean") == 1):  # all processes stop together
                    status = "diverged"
                    break
                optimizer.step()
                step += 1
                losses.append(loss.item())
                bar.update()
                bar.set_postfix_str(_postfix(losses[-1], history), refresh=False)
            if status == "diverged":
                break
            dev_loss, dev_accuracy = evaluate(prepared, dev_loader, accelerator)
            history.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "train_loss": sum(losses) / len(losses),
                    "dev_loss": dev_loss,
                    "dev_accuracy": dev_accuracy,
                }
            )
            bar.set_postfix_str(_postfix(losses[-1], history))
            if not math.isfinite(dev_loss):
                status = "diverged"
                break
            if best_epoch == 0 or dev_loss < history[best_epoch - 1]["dev_loss"]:
                best, best_epoch = _copy(kept), epoch
    with torch.no_grad():
        for tensor, value in zip(kept, best, strict=True):
            tensor.copy_(value)
    chosen = history[best_epoch - 1] if best_epoch else {"dev_loss": math.nan, "dev_accuracy": math.nan}
    return {
        "status": status,
        "best_epoch": best_epoch,
        "dev_loss": chosen["dev_loss"],
        "dev_accuracy": chosen["dev_accuracy"],
        "history": tuple(history),
        "steps": step,
    }


def _copy(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _postfix(loss: float, history: list[dict]) -> str:
    accuracy = f", dev accuracy {history[-1]['dev_accuracy']:.3f}" if history else ""
    return f"loss {loss:.3f}{accuracy}"


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, accelerator: Accelerator | None = None) -> tuple[float, float]:
    """Mean loss and accuracy (a share in [0, 1]) over a data loader, in evaluation mode.

    Args:
        model: as for `train`.
        loader: batches as for `train`; prepared by `accelerator` if one is given, else moved to the model's device.
        accelerator: gathers over processes; None for a single one.
    """
    model.eval()
    device = next(model.parameters()).device
    loss_sum, right, count = 0.0, 0, 0
    for batch in loader:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        output = model(**batch)
        losses = output.loss.detach().double().repeat(len(batch["labels"]))  # per example, so that it can be gathered
        hits = output.logits.argmax(-1) == batch["labels"]
        if accelerator is not None:
            losses, hits = accelerator.gather_for_metrics((losses, hits))
        loss_sum, right, count = loss_sum + losses.sum().item(), right + hits.sum().item(), count + len(hits)
    return loss_sum / count, right / count
