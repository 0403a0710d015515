"""Loss and accuracy of a model over a data set: of the dev set after each epoch, and of anything else."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rmbook.training.accelerator import shards_base
from rmbook.training.objectives import Classification, Objective


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Sequence[Any],
    objective: Objective | None = None,
    batch_size: int = 100,
    accelerator: Accelerator | None = None,
) -> tuple[float, float]:
    """Mean loss and accuracy (a share in [0, 1]) over a data set; the model is left in evaluation mode.

    Args:
        model: as for `rmbook.train`.
        data: a map-style data set, as for `rmbook.train`.
        objective: `rmbook.training.objectives.Classification()` if None.
        batch_size: examples computed at a time; those of like length together.
        accelerator: its processes share the batches, and all get the result; None for one process.

    Returns:
        (loss, accuracy); the accuracy is NaN where the objective knows no right and wrong.

    Raises:
        ValueError: the data set is empty.
    """
    if len(data) == 0:
        raise ValueError("the data set is empty; evaluation needs at least one example.")
    model.eval()
    objective = objective or Classification()
    examples = sorted((data[index] for index in range(len(data))), key=objective.length)
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    if accelerator is not None and shards_base(accelerator):
        accelerator = None  # of a sharded model, all do all of them together
    if accelerator is not None:
        batches = batches[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in objective.ahead(batches):
        loss, right = objective.evaluate(model, batch)
        sums += torch.tensor([loss.item(), math.nan if right is None else right], dtype=torch.float64)
    if accelerator is not None and accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum")
    loss, right = sums.tolist()
    return loss / objective.weight(examples), right / len(examples)
